//! `archiver verify-file`: the child process that verifies one file.

use std::path::PathBuf;

use clap::Args;

use super::print_line;
use crate::compose::child;
use crate::compose::verifier::{Task, perform};

#[derive(Debug, Args)]
pub(super) struct VerifyFile {
    /// The file.
    file: PathBuf,
    /// All that is wanted, from a worker.
    #[arg(long, value_parser = task)]
    task: Task,
}

fn task(text: &str) -> Result<Task, serde_json::Error> {
    serde_json::from_str(text)
}

pub(super) fn run(args: &VerifyFile) {
    child::limit_process();
    let message = perform(&args.file, &args.task);
    print_line(&serde_json::to_string(&message).expect("plain data"));
}
