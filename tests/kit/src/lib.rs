//! Private servers, publishers and media checks for archiver's tests, demo and benches.
