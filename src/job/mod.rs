//! The life of one job: from an accepted event to an available archive or a parked job.
//!
//! ```text
//! accepted ──► capturing ──► finalizing ──► available
//!     │            │              │
//!     └────────────┴──────────────┴──► parked ──(replay)──► back to where its media stands
//! ```
//!
//! [`presence`] is pure; one driver task owns each job and performs what they say.

pub mod presence;
