use super::*;

fn room() -> RoomId {
    "r".parse().expect("room")
}

const fn view(room: &RoomId) -> RoomView<'_> {
    RoomView { room, key: None, observer_name: "Recorder" }
}
use serde_json::json;

#[test]
fn a_display_is_a_name_or_carries_what_the_stream_is() {
    let of = |display: Value| {
        publisher(&json!({ "id": "a", "display": display, "streams": [] }), &view(&room())).expect("publisher")
    };
    assert_eq!(of(json!("Alice")).name.as_deref(), Some("Alice"));
    let full = of(json!(r#"{"name":"Bob","connectionData":"u=7","videoType":"screen","streamId":"x"}"#));
    assert_eq!((full.name.as_deref(), full.connection_data.as_deref()), (Some("Bob"), Some("u=7")));
    assert_eq!((full.video_type, full.stream_id.as_deref()), (VideoType::Screen, Some("x")));
    assert_eq!(of(json!("a\u{0}b\n")).name.as_deref(), Some("ab"));
    assert_eq!(of(json!(7)).name, None);
}

#[test]
fn metadata_goes_before_display_and_a_description_tells_a_screen() {
    let value = json!({ "id": 7, "display": "D", "metadata": { "name": "M" }, "streams": [
        { "type": "video", "mid": "1", "codec": "vp8", "description": "screen" }, { "type": "data", "mid": "2" } ] });
    let stream = publisher(&value, &view(&room())).expect("publisher");
    assert_eq!((stream.router_id.as_str(), stream.name.as_deref()), ("7", Some("M")));
    assert_eq!((stream.video_type, stream.tracks.len()), (VideoType::Screen, 1));
}

#[test]
fn archivers_are_no_clients_but_who_publishes_is_one_whatever_it_calls_itself() {
    let data = json!({ "participants": [
        { "id": "a", "publisher": true }, { "id": "b", "publisher": false }, { "id": "c", "display": "archiver:x", "publisher": false },
        { "id": "d", "display": "archiver:y", "publisher": true }, { "id": "e", "display": "Recorder", "publisher": false },
        { "id": "f", "display": "Recorder", "publisher": true } ] });
    let publishing = vec!["a".to_owned(), "d".to_owned(), "f".to_owned()];
    let expected = Participants { clients: 4, publishing, observers: vec!["c".to_owned(), "e".to_owned()] };
    assert_eq!(participants(&data, "Recorder"), Some(expected));
    let told = json!({ "publishers": [
        { "id": "d", "display": "archiver:y", "streams": [{ "type": "audio", "mid": "0", "codec": "opus" }] },
        { "id": "e", "display": "archiver:z", "streams": [] } ] });
    assert_eq!(
        publishers(&told, &view(&room())).iter().map(|stream| stream.router_id.as_str()).collect::<Vec<_>>(),
        ["d"]
    );
}

#[test]
fn clients_are_told_with_what_their_display_carries() {
    let data = json!({ "participants": [
        { "id": "a", "display": r#"{"name":"A","connectionData":"u=1"}"#, "publisher": true },
        { "id": 7, "publisher": false }, { "id": "c", "display": "archiver:x", "publisher": false }, { "display": "no id" }, 7 ] });
    let client = |id: &str, name: Option<&str>, connection_data: Option<&str>, publishing| Participant {
        router_id: id.to_owned(),
        name: name.map(str::to_owned),
        connection_data: connection_data.map(str::to_owned),
        publishing,
    };
    assert_eq!(
        clients(&data, &view(&room())),
        Some(vec![client("a", Some("A"), Some("u=1"), true), client("7", None, None, false)])
    );
    assert_eq!(clients(&json!({ "participants": 7 }), &view(&room())), None);
}

#[test]
fn rooms_have_names_or_numbers_and_others_are_passed_over() {
    let data = json!({ "list": [
        { "room": "r", "description": "s", "num_participants": 2 }, { "room": 77, "num_participants": 0 },
        { "room": "a/b", "num_participants": 1 }, { "room": "x", "num_participants": -1 }, {}, null ] });
    let listed = |room: &str, about: &str, participants| ListedRoom {
        room: room.parse().expect("room"),
        about: about.to_owned(),
        participants,
    };
    assert_eq!(rooms(&data), Some(vec![listed("r", "s", 2), listed("77", "", 0)]));
    assert_eq!(rooms(&json!({})), None);
}

#[test]
fn moderation_names_stream_and_track() {
    let data = |how: &str| json!({ "videoroom": "event", "id": 7, "mid": "1", "moderation": how });
    let muted = Moderation { router_id: "7".to_owned(), mid: "1".to_owned(), muted: true };
    assert_eq!(moderation(&data("muted")), Some(muted.clone()));
    assert_eq!(moderation(&data("unmuted")), Some(Moderation { muted: false, ..muted }));
    assert_eq!(moderation(&data("else")), None);
    assert_eq!(moderation(&json!({ "moderation": "muted", "id": 7, "mid": {} })), None);
}

#[test]
fn wrong_types_are_as_if_they_were_not_there() {
    for value in [json!({}), json!({ "publishers": 7 }), json!({ "publishers": [1, null, { "id": {} }, { "id": "" }] })]
    {
        assert!(publishers(&value, &view(&room())).is_empty(), "{value}");
        assert!(offer_mids(&value).is_empty());
    }
    assert_eq!(participants(&json!({ "participants": {} }), "Recorder"), None);
}

#[test]
fn an_offer_says_whether_its_media_is_encrypted() {
    let of = |jsep: Value| json!({ "janus": "event", "sender": 7, "jsep": jsep });
    for (jsep, expected) in [
        (json!({ "type": "offer", "sdp": "v=0" }), Some(("v=0", false))),
        (json!({ "type": "offer", "sdp": "v=0", "e2ee": true }), Some(("v=0", true))),
        (json!({ "type": "offer", "sdp": "v=0", "e2ee": "yes" }), Some(("v=0", false))),
        (json!({ "type": "answer", "sdp": "v=0" }), None),
        (json!({ "type": "offer", "sdp": 1 }), None),
        (json!(null), None),
    ] {
        assert_eq!(offer(&of(jsep.clone())), expected, "{jsep}");
    }
}

#[test]
fn a_list_says_whether_a_room_s_publishers_must_encrypt() {
    let list = json!({ "list": [
        null, { "room": 7, "require_e2ee": true }, { "room": "open", "require_e2ee": false }, { "room": "old" },
        { "room": "odd", "require_e2ee": "yes" },
    ] });
    for (room, expected) in [("7", true), ("open", false), ("old", false), ("odd", false), ("other", false)] {
        assert_eq!(requires_encryption(&list, &room.parse().expect("id")), expected, "{room}");
    }
    assert!(!requires_encryption(&json!({ "list": 7 }), &room()));
}

#[test]
fn a_candidate_is_read_and_the_last_message_has_none() {
    let of = |candidate: Value| json!({ "janus": "trickle", "sender": 7, "candidate": candidate });
    let text = "candidate:1 1 udp 2015363327 10.211.0.1 40001 typ host";
    let candidate = of(json!({ "sdpMid": "0", "sdpMLineIndex": 0, "candidate": text }));
    assert_eq!(trickled(&candidate), Some(text));
    for none in [
        json!({ "completed": true }),
        json!({ "candidate": 7 }),
        json!([]),
        json!({ "candidate": "x".repeat(501) }),
        json!({ "candidate": "candidate:1\r\na=x" }),
    ] {
        assert_eq!(trickled(&of(none)), None);
    }
    assert_eq!(private_id(&json!({ "private_id": 547_293_884 })), Some(547_293_884));
    assert_eq!(private_id(&json!({ "private_id": -1 })), None);
}

#[test]
fn errors_are_told_apart_by_their_codes() {
    let room = "r".parse().expect("room");
    let kind = |error: RouterError| match error {
        RouterError::RoomNotFound { .. } => "no room",
        RouterError::StreamNotFound { .. } => "no stream",
        RouterError::Refused { .. } => "refused",
        RouterError::Protocol { .. } => "protocol",
        RouterError::Unavailable { .. } | RouterError::Timeout { .. } => "unavailable",
    };
    // The texts are those of Janus 1.1.2.
    for (code, text, expected) in [
        (421, "No message??", "protocol"),
        (423, "Unknown request 'x'", "protocol"),
        (425, "Already in as a subscriber on this handle", "protocol"),
        (426, "No such room (r)", "no room"),
        (428, "No such feed (alice)", "no stream"),
        (428, "No such mid '7' in feed (alice)", "no stream"),
        (429, "Missing mandatory element (pin)", "refused"),
        (429, "Missing mandatory element (secret)", "refused"),
        (429, "Missing mandatory element (admin_key)", "refused"),
        (429, "At least one between 'streams' and 'feed' must be specified", "protocol"),
        (429, "Missing mandatory element (ptype)", "protocol"),
        (430, "Invalid element type (pin should be a string)", "refused"),
        (430, "Invalid element type (private_id should be a positive integer)", "refused"),
        (430, "Invalid element type (room should be a positive integer)", "protocol"),
        (432, "Maximum number of publishers (3) already reached", "protocol"),
        (433, "Unauthorized (not in the allowed list)", "refused"),
        (433, "Unauthorized (this room requires a valid private_id)", "refused"),
        (433, "Unauthorized (wrong pin)", "refused"),
        (433, "Unauthorized, you have been kicked", "refused"),
        (436, "User ID alice already exists", "protocol"),
        (499, "Unknown error", "protocol"),
    ] {
        let data = json!({ "videoroom": "event", "error_code": code, "error": text });
        let answer = json!({ "janus": "event", "plugindata": { "data": data } });
        let told = error("j", Some(&room), "subscribe", &answer).expect("an error");
        assert_eq!(kind(told), expected, "{code} {text}");
    }
    for (code, text, expected) in [
        (403, "Unauthorized request (wrong or missing secret/token)", "refused"),
        (405, "Provided token can't access plugin 'janus.plugin.videoroom'", "refused"),
        (458, "No such session 7", "protocol"),
        (459, "No such handle 7 in session 7", "protocol"),
        (470, "Token x not found", "refused"),
    ] {
        let answer = json!({ "janus": "error", "error": { "code": code, "reason": text } });
        let told = error("j", Some(&room), "subscribe", &answer).expect("an error");
        assert_eq!(kind(told), expected, "{code} {text}");
    }
    assert!(error("j", None, "join", &json!({ "janus": "success" })).is_none());
}

#[test]
fn an_identity_is_signed_for_one_feed_and_says_so() {
    let (room, key) = (room(), SecretString::from("key"));
    let identity = Identity { room: &room, feed: "f", stream: "s", connection_data: "u=1" };
    let signature = identity.sign(&key);
    let display = |more: &str| format!(r#"{{"streamId":"s","connectionData":"u=1"{more}}}"#);
    let signed = display(&format!(r#","signature":"{signature}","name":"Alice""#));
    for (feed, display, key, expected) in [
        ("f", signed.clone(), Some(&key), Signature::Valid),
        // Somebody else has copied it.
        ("g", signed.clone(), Some(&key), Signature::Invalid),
        ("f", signed.replace("u=1", "u=2"), Some(&key), Signature::Invalid),
        ("f", display(""), Some(&key), Signature::Absent),
        ("f", "Alice".to_owned(), Some(&key), Signature::Absent),
        ("f", display(r#","signature":7"#), Some(&key), Signature::Absent),
        ("f", signed, None, Signature::Invalid),
    ] {
        let value = json!({ "id": feed, "display": display, "streams": [] });
        let found = publisher(&value, &RoomView { room: &room, key, observer_name: "Recorder" }).expect("publisher");
        assert_eq!(found.signature, expected, "{feed} {display}");
    }
    // No token's data is too long to be signed.
    let long = "ü".repeat(DATA_CHARS_MAX);
    let signature = Identity { connection_data: &long, ..identity }.sign(&key);
    let display = json!({ "streamId": "s", "connectionData": long, "signature": signature }).to_string();
    let value = json!({ "id": "f", "display": display });
    let found =
        publisher(&value, &RoomView { room: &room, key: Some(&key), observer_name: "Recorder" }).expect("publisher");
    assert_eq!(found.signature, Signature::Valid);
}

#[test]
fn settings_that_cost_media_are_named() {
    let good = json!({ "min-nack-queue": 1000, "reclaim-session-timeout": 30, "accepting-new-sessions": true });
    assert!(hindrances(&good).is_empty() && hindrances(&json!({})).is_empty());
    for (name, value, text) in [
        ("min-nack-queue", json!(200), "min_nack_queue = 1000 instead of 200"),
        ("reclaim-session-timeout", json!(0), "reclaim_session_timeout = 30"),
        ("accepting-new-sessions", json!(false), "accepting new sessions"),
    ] {
        let mut info = good.clone();
        info[name] = value;
        let found = hindrances(&info);
        assert!(found.len() == 1 && found[0].contains(text), "{found:?}");
    }
}
