//! The beginning of an MP4 file from the object store, which may not be what was put there. It is refused, or parts of it can
//! be asked for; nothing may panic, and no more is kept than the bytes of it account for.

#![no_main]

use archiver::media::clip::{ClipRange, ClipSource};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(place) = ClipSource::index_range(data) else { return };
    let (begin, end) = (place.start as usize, (place.end as usize).min(data.len()));
    // The media would lie behind it.
    let Ok(source) = ClipSource::parse(data.get(begin..end).unwrap_or_default(), 1 << 30, 30) else { return };
    let (_, length) = (source.rate(), source.moment(1));
    for (from_ms, to_ms, at_keyframe) in
        [(0, None, false), (0, Some(1), false), (1500, Some(2500), true), (u32::MAX, None, true), (length as u32, Some(u32::MAX), false)]
    {
        if let Ok(clip) = source.clip(ClipRange { from_ms, to_ms, at_keyframe }) {
            let (video, audio) = source.has(&clip);
            assert!(clip.pictures > 0 && (video || audio), "{clip:?}");
        }
    }
});
