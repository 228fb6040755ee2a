//! Events as a broker could deliver them: any bytes. Nothing may panic; what is accepted names one job and
//! has one decision, and what is refused says why, in few words, with a fault that parks it.

#![no_main]

use archiver::event::policy::decide;
use archiver::event::{SessionEvent, parse};
use archiver::model::fault::{HasFault, Retry};
use libfuzzer_sys::fuzz_target;

/// Longest reason in bytes: people read it in a list of parked jobs.
const REASON_BYTES_MAX: usize = 4096;

fuzz_target!(|data: &[u8]| match parse(data) {
    Ok(SessionEvent::Started(event)) => {
        assert_eq!(event.job(), event.job());
        let known = decide(&event.data, |_| true);
        assert_eq!(known, decide(&event.data, |_| true));
        // Without its router nothing more is accepted than with it.
        let unknown = decide(&event.data, |_| false);
        assert!(unknown == known || !format!("{unknown:?}").starts_with("Archive"));
    }
    Ok(SessionEvent::Ended(event)) => assert!(!event.id.to_string().is_empty()),
    Err(error) => {
        let reason = error.to_string();
        assert!(!reason.is_empty() && reason.len() <= REASON_BYTES_MAX, "{} bytes", reason.len());
        assert_eq!(error.fault().retry, Retry::Never);
    }
});
