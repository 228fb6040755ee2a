//! Who may call the API and who may join a session: applications, their keys, and the tokens that the SDKs make.

pub mod applications;
pub mod client_token;
pub mod token;
mod validity;
