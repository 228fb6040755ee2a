//! Requests as the SDKs of Java, .NET, PHP and Ruby send them, byte by byte: in `fixtures/requests`. What they have in braces is
//! put in when they are sent; tokens are made as each SDK makes them.

use crate::BINARY;
use std::path::Path;

use archiver_testkit::api::{self, Answer, Application, now};
use archiver_testkit::sdk_tokens;
use archiver_testkit::world::World;

/// An SDK: which requests are its, and how it signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sdk {
    JavaLegacy,
    JavaUnified,
    NetLegacy,
    NetUnified,
    PhpLegacy,
    PhpUnified,
    RubyLegacy,
    RubyUnified,
}

impl Sdk {
    pub const ALL: [Self; 8] = [
        Self::JavaLegacy,
        Self::JavaUnified,
        Self::NetLegacy,
        Self::NetUnified,
        Self::PhpLegacy,
        Self::PhpUnified,
        Self::RubyLegacy,
        Self::RubyUnified,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::JavaLegacy => "java-legacy",
            Self::JavaUnified => "java-unified",
            Self::NetLegacy => "net-legacy",
            Self::NetUnified => "net-unified",
            Self::PhpLegacy => "php-legacy",
            Self::PhpUnified => "php-unified",
            Self::RubyLegacy => "ruby-legacy",
            Self::RubyUnified => "ruby-unified",
        }
    }

    pub const fn is_legacy(self) -> bool {
        matches!(self, Self::JavaLegacy | Self::NetLegacy | Self::PhpLegacy | Self::RubyLegacy)
    }

    /// Whether it reads nothing but XML when a session is created.
    pub const fn reads_xml(self) -> bool {
        matches!(self, Self::NetLegacy | Self::PhpLegacy | Self::RubyLegacy)
    }

    /// A request token as the SDK creates it.
    pub fn token(self, of: &Application) -> String {
        let made = match self {
            Self::JavaLegacy => sdk_tokens::JAVA_LEGACY,
            Self::JavaUnified => sdk_tokens::JAVA_UNIFIED,
            Self::NetLegacy => sdk_tokens::NET_LEGACY,
            Self::NetUnified => sdk_tokens::NET_UNIFIED,
            Self::PhpLegacy => sdk_tokens::PHP_LEGACY,
            Self::PhpUnified => sdk_tokens::PHP_UNIFIED,
            Self::RubyLegacy => sdk_tokens::RUBY_LEGACY,
            Self::RubyUnified => sdk_tokens::RUBY_UNIFIED,
        };
        made.issue(of, "", now())
    }
}

/// The service, and who asks it.
pub struct Service {
    pub world: World,
    pub unified: Application,
    pub legacy: Application,
}

impl Service {
    pub async fn start() -> Self {
        let mut world = World::start(BINARY, None, "").await.expect("world");
        world.start_worker().expect("worker");
        api::ready(world.api()).await;
        let unified = Application::unified(&world, "78d335fa-323d-4114-9c3d-d6f0d48968cf").expect("application");
        let legacy =
            Application::legacy(&world, "123456", "a secret of forty characters, more or less").expect("project");
        Self { world, unified, legacy }
    }

    pub const fn application(&self, sdk: Sdk) -> &Application {
        if sdk.is_legacy() { &self.legacy } else { &self.unified }
    }

    /// Sends a recorded request.
    pub async fn replay(&self, sdk: Sdk, what: &str, values: &[(&str, &str)]) -> Answer {
        let of = self.application(sdk);
        self.replay_as(&format!("{}-{what}", sdk.name()), of, &sdk.token(of), values).await
    }

    pub async fn replay_as(&self, name: &str, of: &Application, token: &str, values: &[(&str, &str)]) -> Answer {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/requests/{name}.http"));
        let mut text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        while text.starts_with('#') {
            text = text.split_once('\n').expect("a request after its remarks").1.to_owned();
        }
        let host = self.world.api().to_string();
        for (key, value) in [("host", host.as_str()), ("token", token), ("project", &of.id)].iter().chain(values) {
            text = text.replace(&format!("{{{{{key}}}}}"), value);
        }
        let (head, body) = text.split_once("\n\n").expect("an empty line after the head");
        let body = body.trim_end();
        let head = head.replace("{{length}}", &body.len().to_string()).replace('\n', "\r\n");
        assert!(!format!("{head}{body}").contains("{{"), "{name}: {head}\n{body}");
        let answer = api::exchange(self.world.api(), format!("{head}\r\n\r\n{body}").as_bytes()).await;
        answer.unwrap_or_else(|e| panic!("{name}: {e:#}"))
    }
}
