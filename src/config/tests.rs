use std::io::Write;

use secrecy::ExposeSecret;

use super::*;

const EXAMPLE: &str = include_str!("../../fixtures/archiver.example.toml");
const BAD: &str = include_str!("../../fixtures/config/bad.toml");
const BAD_ERRORS: &str = include_str!("../../fixtures/config/bad.errors.txt");

fn load(text: &str, environment: &[(&str, &str)]) -> Result<Settings, ConfigErrors> {
    let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Settings::read(text, &environment)
}

fn errors(text: &str, environment: &[(&str, &str)]) -> String {
    load(text, environment).expect_err("bad").to_string()
}

fn secret_file(content: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("file");
    file.write_all(content).expect("write");
    file
}

/// Every section with its keys.
const SECTIONS: &[(&str, &[&str])] = &[
    ("[worker]", WorkerSection::KEYS),
    ("[broker]", BrokerSection::KEYS),
    ("[catalog]", CatalogSection::KEYS),
    ("[store]", StoreSection::KEYS),
    ("[[router]]", RouterSection::KEYS),
    ("[router.rooms", RoomSection::KEYS),
    ("[[region]]", RegionSection::KEYS),
    ("[geo]", GeoSection::KEYS),
    ("[api]", ApiSection::KEYS),
    ("[callbacks]", CallbacksSection::KEYS),
    ("[bridge]", BridgeSection::KEYS),
    ("[spool]", SpoolSection::KEYS),
    ("[media]", MediaSection::KEYS),
    ("[capture]", CaptureSection::KEYS),
    ("[limits]", LimitsSection::KEYS),
    ("[http]", HttpSection::KEYS),
    ("[log]", LogSection::KEYS),
];

#[test]
fn an_empty_configuration_is_valid_and_says_what_a_worker_needs() {
    let settings = load("", &[]).expect("valid");
    let missing = settings.for_worker().expect_err("no broker").to_string();
    assert!(missing.contains("broker.url") && missing.contains("[[router]]"), "{missing}");
}

#[test]
fn every_bad_value_is_told_with_its_key_its_value_and_what_is_allowed() {
    let environment = [
        ("ARCHIVER__LIMITS__NO_CLIENTS", "soon"),
        ("ARCHIVER__EXTRA__A", "1"),
        ("ARCHIVER__X", "1"),
        ("ARCHIVER_CONFIG", "x"),
    ];
    let told = errors(BAD, &environment) + "\n";
    assert_eq!(told, BAD_ERRORS, "fixtures/config/bad.errors.txt; as it is now:\n{told}");
    assert!(!told.contains("hunter2"), "{told}");
}

#[test]
fn what_is_no_toml_is_told_by_its_line_and_without_its_secret() {
    let told = errors("[store]\nkind = 's3'\nsecret_key = \"hunter2\n", &[]);
    assert!(told.contains("line 3"), "{told}");
    assert!(!told.contains("hunter2"), "{told}");
}

#[test]
fn an_address_that_is_shown_has_no_password() {
    let told =
        errors("[store]\nendpoint = 'http://u:hunter2@h'\n[[router]]\nname = 'j'\nurl = 'ws://u:hunter2@h'", &[]);
    assert!(told.contains("store.endpoint") && told.contains("router j.url") && !told.contains("hunter2"), "{told}");
}

#[test]
fn the_environment_goes_before_the_file() {
    let settings = load(
        "[pipelines]\ndir = '/a'\n[worker]\ncapacity = 3\n[[router]]\nname = 'janus-1.eu'\nurl = 'ws://a'\npin = 'a'",
        &[
            ("ARCHIVER__WORKER__CAPACITY", "7"),
            ("ARCHIVER__STORE__PATH_STYLE", "false"),
            ("ARCHIVER__ROUTER__JANUS_1_EU__PIN", "4321"),
            ("ARCHIVER__PIPELINES__DIR", "/b"),
        ],
    );
    let settings = settings.expect("valid");
    assert_eq!((settings.worker.capacity, settings.store.path_style), (7, false));
    assert_eq!(settings.routers[0].pin.as_ref().expect("pin").expose_secret(), "4321");
    assert_eq!(settings.pipelines.dir, Some("/b".into()));
    let told = errors("", &[("ARCHIVER__ROUTER__JANUS_2__PIN", "4321")]);
    assert!(told.contains("ROUTER__JANUS_2") && !told.contains("4321"), "{told}");
}

#[test]
fn a_text_of_the_environment_may_look_like_a_number() {
    let environment = [
        ("ARCHIVER__STORE__BUCKET", "2026"),
        ("ARCHIVER__STORE__ACCESS_KEY", "12345"),
        ("ARCHIVER__STORE__SECRET_KEY", "true"),
        ("ARCHIVER__WORKER__ID", "7"),
    ];
    let settings = load("", &environment).expect("valid");
    assert_eq!((settings.store.bucket.as_str(), settings.store.access_key.as_deref()), ("2026", Some("12345")));
    assert_eq!(settings.store.secret_key.expect("key").expose_secret(), "true");
    assert_eq!(settings.worker.id.expect("id").as_str(), "7");
}

#[test]
fn a_secret_may_be_in_a_file_of_its_own() {
    let (url, pin) = (secret_file(b"amqp://u:p@h\n"), secret_file(b"1234\r\n"));
    let text = format!(
        "[broker]\nurl_file = '{}'\n[[router]]\nname = 'j'\nurl = 'ws://a'\npin_file = '{}'",
        url.path().display(),
        pin.path().display()
    );
    let settings = load(&text, &[]).expect("valid");
    assert_eq!(settings.broker.url.expect("url").expose_secret(), "amqp://u:p@h");
    assert_eq!(settings.routers[0].pin.as_ref().expect("pin").expose_secret(), "1234");
    // The environment goes before the file, whichever of the two ways either takes.
    let settings = load(&text, &[("ARCHIVER__BROKER__URL", "amqp://other")]).expect("valid");
    assert_eq!(settings.broker.url.expect("url").expose_secret(), "amqp://other");
    let path = url.path().display().to_string();
    let settings = load("[broker]\nurl = 'amqp://other'", &[("ARCHIVER__BROKER__URL_FILE", &path)]).expect("valid");
    assert_eq!(settings.broker.url.expect("url").expose_secret(), "amqp://u:p@h");
    let (empty, long, binary) = (secret_file(b"\n"), secret_file(&[b'x'; 65_537]), secret_file(&[0xff]));
    for (bad, why) in [(empty, "empty"), (long, "65536 bytes"), (binary, "cannot be read")] {
        let told = errors(&format!("[broker]\nurl_file = '{}'", bad.path().display()), &[]);
        assert!(told.contains("broker.url_file") && told.contains(why), "{told}");
    }
    for (text, why) in [
        ("[broker]\nurl = 'amqp://h'\nurl_file = '/x'", "only one of them"),
        ("[broker]\nurl_file = '/nowhere/secret'", "cannot be read"),
        ("[broker]\nurl_file = 1", "is not a path"),
        ("[http]\nbind_file = '/x'", "there is no such key"),
    ] {
        let told = errors(text, &[]);
        assert!(told.contains(why), "{told}");
    }
}

#[test]
fn a_room_may_have_a_token_of_its_own_that_no_message_has() {
    let file = secret_file(b"from a file\n");
    let router = "[[router]]\nname = 'j'\nurl = 'ws://a'\n";
    let text = format!(
        "{router}[router.rooms.\"2_MX4x~\"]\ntoken = 'hunter2'\n[router.rooms.b]\ntoken_file = '{}'\n[[router]]\nname = 'k'\nurl = 'ws://b'",
        file.path().display()
    );
    let settings = load(&text, &[]).expect("valid");
    let token = |room: &str| {
        let room = settings.routers[0].rooms.get(&room.parse().expect("room"));
        room.and_then(|room| room.token.as_ref()).map(|token| token.expose_secret().to_owned())
    };
    assert_eq!((token("2_MX4x~").as_deref(), token("b").as_deref()), (Some("hunter2"), Some("from a file")));
    assert!(settings.routers[1].rooms.is_empty());
    let printed = settings.to_string();
    assert!(!printed.contains("hunter2") && !printed.contains("from a file"), "{printed}");
    assert_eq!(load(&printed, &[]).expect("it can be read again").to_string(), printed);
    for (bad, why) in [
        ("rooms = 'hunter2'", "router j.rooms: is not a section"),
        ("[router.rooms]\na = 'hunter2'", "router j.rooms.\"a\": is not a section"),
        ("[router.rooms.a]\ntoken = ['hunter2']", "router j.rooms.\"a\".token: is not a text"),
        ("[router.rooms.a]\nsecret = 'x'", "router j.rooms.\"a\".secret: there is no such key, expected `token`"),
        ("[router.rooms.\"a/b\"]\ntoken = 'hunter2'", "router j.rooms.\"a/b\": "),
        (
            "[router.rooms.a]\ntoken_file = '/nowhere/x'",
            "router j.rooms.\"a\".token_file = \"/nowhere/x\": cannot be read",
        ),
    ] {
        let told = errors(&format!("{router}{bad}"), &[]);
        assert!(told.contains(why) && !told.contains("hunter2"), "{bad}: {told}");
    }
}

#[test]
fn the_example_is_valid_and_has_every_key() {
    load(EXAMPLE, &[]).expect("valid").for_worker().expect("enough for a worker");
    for (section, keys) in SECTIONS {
        let part = EXAMPLE.split(&format!("\n{section}")).nth(1).expect(section);
        let part = part.split("\n[").next().expect("part");
        for key in *keys {
            let there = part.lines().any(|l| l.trim_start_matches("# ").starts_with(&format!("{key} = ")));
            assert!(there, "{section} {key} is not in the example");
        }
    }
}

#[test]
fn every_key_that_the_example_leaves_out_exists() {
    let all: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(key) if key.split_once(" = ").is_some_and(|(k, _)| !k.contains(' ') && !k.ends_with("_file")) => key,
            _ => line,
        })
        .fold(String::new(), |text, line| text + line + "\n");
    load(&all, &[]).expect("valid");
}

#[test]
fn defaults_in_the_example_are_those_of_the_program() {
    let (example, default) = (load(EXAMPLE, &[]).expect("valid"), Settings::default());
    assert_eq!(example.capture.redacted(), default.capture.redacted());
    assert_eq!(example.limits.redacted(), default.limits.redacted());
    assert_eq!(example.spool.redacted(), default.spool.redacted());
    assert_eq!(example.http.redacted(), default.http.redacted());
}

#[test]
fn a_printed_configuration_says_the_same_and_no_secret() {
    let text = "[pipelines]\ndir = '/p'\n[broker]\nurl = 'amqp://u:hunter2@h'\n[store]\npart_size = '6MiB'\n\
                access_key = 'a'\nsecret_key = 'hunter2'\n[capture]\nvideo_hold = '1500ms'\nkeyframe_interval_max = '0s'\n\
                [[router]]\nname = 'j'\nurl = 'ws://a'\napi_secret = 'hunter2'\ntoken = 'hunter2'\npin = 'hunter2'";
    let settings = load(text, &[]).expect("valid");
    let printed = settings.to_string();
    assert!(!printed.contains("hunter2") && !format!("{settings:?}").contains("hunter2"), "{printed}");
    assert!(printed.contains("part_size = \"6MiB\"") && printed.contains("video_hold = \"1500ms\""), "{printed}");
    let again = load(&printed.replace("url = \"(hidden)\"", "url = 'amqp://h'"), &[]).expect("it can be read again");
    assert_eq!(again.to_string(), printed);
}
