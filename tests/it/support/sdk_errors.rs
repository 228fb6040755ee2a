//! What the SDKs of Vonage and `OpenTok` make of answers that are not a success.

use archiver_testkit::sdk::Sdk;

/// What an SDK makes of an answer with this status: the class of its error, and words of it.
pub fn made_of(sdk: Sdk, call: &str, status: u16) -> (&'static str, String) {
    let says = |kind, words: &str| (kind, words.to_owned());
    let change = matches!(call, "addStream" | "removeStream");
    match (sdk, call, status) {
        (Sdk::VonageNode, ..) => ("VetchError", format!("status code {status}")),

        (Sdk::VonagePython, "stopArchive", 409) => says("InvalidArchiveStateError", "can only stop"),
        (Sdk::VonagePython, "deleteArchive", 409) => says("InvalidArchiveStateError", "can only delete"),
        (Sdk::VonagePython, _, 403) => says("ForbiddenError", "403 response"),
        (Sdk::VonagePython, _, 404) => says("NotFoundError", "404 response"),
        (Sdk::VonagePython, ..) => ("HttpRequestError", format!("{status} response")),

        (Sdk::OpentokNode, "createSession", _) => says("Error", "Failed to createSession"),
        (Sdk::OpentokNode, _, 403) => says("AuthError", "Invalid API key or secret"),
        (Sdk::OpentokNode, "startArchive", 404) => says("ArchiveError", "Session not found"),
        (Sdk::OpentokNode, "startArchive", 409) => says("ArchiveError", "Recording already in progress"),
        (Sdk::OpentokNode, "stopArchive" | "deleteArchive", 404) => says("ArchiveError", "Archive not found"),
        (Sdk::OpentokNode, "stopArchive", 409) => says("ArchiveError", "not recorded"),
        (Sdk::OpentokNode, "getArchive", 404) => says("NotFoundError", "Archive not found"),
        (Sdk::OpentokNode, _, 400) if change => says("ArgumentError", "Invalid request"),
        (Sdk::OpentokNode, _, 404) if change => says("ArchiveError", "Archive or stream not found"),
        (Sdk::OpentokNode, _, 405) if change => says("ArchiveError", "Unsupported Stream Mode"),
        (Sdk::OpentokNode, _, 404) => says("NotFoundError", "Not Found"),
        (Sdk::OpentokNode, ..) => says("RequestError", "Unexpected response"),

        (Sdk::OpentokPython, "createSession", 403) => says("RequestError", "invalid credentials"),
        (Sdk::OpentokPython, "createSession", _) => says("OpenTokException", "Failed to generate session"),
        (Sdk::OpentokPython, ..) if change => ("RequestError", format!("error occurred.', {status}")),
        (Sdk::OpentokPython, _, 403) => says("AuthError", ""),
        (Sdk::OpentokPython, "startArchive", 404) => says("NotFoundError", "Session not found"),
        (Sdk::OpentokPython, "startArchive", 400) => says("RequestError", ""),
        (Sdk::OpentokPython, "startArchive", 409) => says("ArchiveError", ""),
        (Sdk::OpentokPython, "stopArchive", 409) => says("ArchiveError", "not in started state"),
        (Sdk::OpentokPython, "getArchive" | "stopArchive" | "deleteArchive", 404) => {
            says("NotFoundError", "Archive not found")
        }
        (Sdk::OpentokPython, "setLayout", 400) => says("ArchiveError", "invalid layout options"),
        (Sdk::OpentokPython, "setClasses", 400) => says("SetStreamClassError", "invalid layout options"),
        (Sdk::OpentokPython, "getStream" | "listStreams", 400 | 408) => says("GetStreamError", "invalid stream ID"),
        (Sdk::OpentokPython, "setLayout" | "setClasses", _) => ("RequestError", format!("server error.', {status}")),
        (Sdk::OpentokPython, ..) => ("RequestError", format!("error occurred', {status}")),
    }
}
