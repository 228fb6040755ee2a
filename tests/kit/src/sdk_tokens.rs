//! Tokens as the server SDKs create them with default options: JOSE header, claims, their order and their encoding.
//!
//! The texts come from the SDKs' sources and from the JWT libraries that they use; a comment names the file. Placeholders:
//! `<id>` is the application id or project key, `<session>` the session id, `<iat>` the time of issue and `<exp>` the expiry
//! (seconds since 1970), `<uuid>` a random UUID. Random values that no server reads are fixed samples.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use hmac::{Hmac, Mac};
use sha1::Sha1;

use crate::api::{Application, signed_text};

const HOUR: u64 = 3600;

/// The form of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A JSON Web Token with this JOSE header.
    Jwt(&'static str),
    /// `T1==` and standard base64.
    T1,
    /// `T1==` and base64 with `-` and `_` instead of `+` and `/`.
    T1UrlSafe,
}

/// The tokens that one SDK creates.
#[derive(Debug, Clone, Copy)]
pub struct SdkToken {
    /// The SDK, its version and mode.
    pub sdk: &'static str,
    /// The form.
    pub form: Form,
    /// The claims: JSON, or the query string of a T1 token.
    pub claims: &'static str,
    /// Seconds from `iat` to `exp`. `None`: the SDK sets no `exp`.
    pub lifetime: Option<u64>,
}

// JOSE headers. The order of the fields is that of the SDK's JWT library.
const HS256: &str = r#"{"alg":"HS256"}"#;
const HS256_TYP: &str = r#"{"alg":"HS256","typ":"JWT"}"#;
const TYP_HS256: &str = r#"{"typ":"JWT","alg":"HS256"}"#;
const RS256_TYP: &str = r#"{"alg":"RS256","typ":"JWT"}"#;
const TYP_RS256: &str = r#"{"typ":"JWT","alg":"RS256"}"#;

/// Java, vonage-java-sdk 9.13.0 and opentok 4.17.0 with a Vonage application: com.vonage:jwt 2.0.1 `Jwt.java` (`generate`),
/// called by `JWTAuthMethod.java` and `HttpClient.java` (`TokenAuthRequestFilter`). Header: auth0 java-jwt 4, `JWTCreator.java`.
pub const JAVA_UNIFIED: SdkToken = SdkToken {
    sdk: "vonage-java-sdk 9.13, and Java opentok 4.17 with a Vonage application",
    form: Form::Jwt(RS256_TYP),
    claims: r#"{"application_id":"<id>","jti":"<uuid>","iat":<iat>}"#,
    lifetime: None,
};

/// Java, opentok 4.17.0: `TokenGenerator.java` (`generateToken(Integer, String)`). jose4j 0.9.6 writes `alg` alone into the
/// header, and a `jti` of 16 random bytes in URL-safe base64 (`JwtClaims.java`).
pub const JAVA_LEGACY: SdkToken = SdkToken {
    sdk: "Java opentok 4.17",
    form: Form::Jwt(HS256),
    claims: r#"{"ist":"project","iss":"<id>","jti":"2fHcvO8V5Rk-0pYq_w3uXg","exp":<exp>,"iat":<iat>}"#,
    lifetime: Some(180),
};

/// .NET, Vonage 8.35.0 and OpenTok 3.22.0 with a Vonage application (it uses Vonage 7.10.0): `Jwt.cs`
/// (`CreateTokenWithClaims`). Header: jose-jwt 5, `JWT.cs`; it does not escape `+` (`JsonMapper.cs`).
pub const NET_UNIFIED: SdkToken = SdkToken {
    sdk: ".NET Vonage 8.35, and .NET OpenTok 3.22 with a Vonage application",
    form: Form::Jwt(RS256_TYP),
    claims: concat!(
        r#"{"iat":<iat>,"application_id":"<id>","jti":"mVv8+Qm/0tqFv1R9k8wT6cVbR0x5GgQ2pN4ZtJYd3o"#,
        r#"sKfAhL7uEiXyBzPwUrMnC1/a+jS5D2qWeHlO8vT6bFg=="}"#,
    ),
    lifetime: None,
};

/// .NET, OpenTok 3.22.0: `TokenGenerator.cs` (`GenerateLegacyToken`). Header: JWT 10.1, `JwtEncoder.cs`.
pub const NET_LEGACY: SdkToken = SdkToken {
    sdk: ".NET OpenTok 3.22",
    form: Form::Jwt(TYP_HS256),
    claims: r#"{"iss":"<id>","ist":"project","iat":<iat>,"exp":<exp>}"#,
    lifetime: Some(300),
};

/// Ruby, vonage 7.35.0: vonage-jwt 0.2 `jwt.rb` (`to_payload`), called by `config.rb` (`token`).
pub const RUBY_UNIFIED: SdkToken = SdkToken {
    sdk: "Ruby vonage 7.35",
    form: Form::Jwt(TYP_RS256),
    claims: r#"{"iat":<iat>,"jti":"<uuid>","exp":<exp>,"application_id":"<id>"}"#,
    lifetime: Some(900),
};

/// Ruby, opentok 4.13.0: `client.rb` (`generate_jwt`). `ist` is in the header, which has no `typ`.
pub const RUBY_LEGACY: SdkToken = SdkToken {
    sdk: "Ruby opentok 4.13",
    form: Form::Jwt(r#"{"ist":"project","alg":"HS256"}"#),
    claims: r#"{"iss":"<id>","iat":<iat>,"exp":<exp>}"#,
    lifetime: Some(300),
};

/// PHP, vonage/video 1.3.0, and opentok/opentok 4.21.3 with a Vonage application: vonage/jwt 0.5.1 `TokenGenerator.php`
/// (`generate`). Header: lcobucci/jwt, `Builder.php`.
pub const PHP_UNIFIED: SdkToken = SdkToken {
    sdk: "PHP vonage/video 1.3, and PHP opentok 4.21 with a Vonage application",
    form: Form::Jwt(TYP_RS256),
    claims: r#"{"iat":<iat>,"exp":<exp>,"jti":"<uuid>","application_id":"<id>"}"#,
    lifetime: Some(900),
};

/// PHP, opentok/opentok 4.21.3: `Client.php` (`createAuthHeader`). Header: firebase/php-jwt 7, `JWT.php`.
pub const PHP_LEGACY: SdkToken = SdkToken {
    sdk: "PHP opentok 4.21",
    form: Form::Jwt(TYP_HS256),
    claims: r#"{"ist":"project","iss":"<id>","iat":<iat>,"exp":<exp>,"jti":"671fb1f0c4a350.63721940"}"#,
    lifetime: Some(300),
};

/// PHP, opentok/opentok 4.21.3, created with an integer API key: `iss` is a JSON number.
pub const PHP_LEGACY_INTEGER: SdkToken = SdkToken {
    sdk: "PHP opentok 4.21 with an integer key",
    claims: r#"{"ist":"project","iss":<id>,"iat":<iat>,"exp":<exp>,"jti":"671fb1f0c4a350.63721940"}"#,
    ..PHP_LEGACY
};

/// Request tokens.
pub const REQUEST: [SdkToken; 15] = [
    JAVA_UNIFIED,
    JAVA_LEGACY,
    NET_UNIFIED,
    NET_LEGACY,
    RUBY_UNIFIED,
    RUBY_LEGACY,
    PHP_UNIFIED,
    PHP_LEGACY,
    PHP_LEGACY_INTEGER,
    // `packages/jwt/lib/tokenGenerate.ts` (@vonage/jwt 1.14.0).
    SdkToken {
        sdk: "npm @vonage/video 1.28",
        form: Form::Jwt(RS256_TYP),
        claims: r#"{"jti":"<uuid>","iat":<iat>,"exp":<exp>,"application_id":"<id>"}"#,
        lifetime: Some(900),
    },
    // `lib/generateJwt.js`.
    SdkToken {
        sdk: "npm opentok 2.23 with a Vonage application",
        form: Form::Jwt(RS256_TYP),
        claims: concat!(
            r#"{"iss":"<id>","ist":"project","iat":<iat>,"exp":<exp>,"application_id":"<id>","#,
            r#""jti":"<uuid>"}"#,
        ),
        lifetime: Some(300),
    },
    SdkToken {
        sdk: "npm opentok 2.23",
        form: Form::Jwt(HS256_TYP),
        claims: r#"{"iss":"<id>","ist":"project","iat":<iat>,"exp":<exp>}"#,
        lifetime: Some(300),
    },
    // `jwt/src/vonage_jwt/jwt.py` (vonage-jwt 1.1.5). PyJWT sorts the header's fields.
    SdkToken {
        sdk: "PyPI vonage 4.9",
        form: Form::Jwt(RS256_TYP),
        claims: r#"{"application_id":"<id>","iat":<iat>,"jti":"<uuid>","exp":<exp>}"#,
        lifetime: Some(900),
    },
    // `opentok/opentok.py` (`_create_jwt_auth_header`).
    SdkToken {
        sdk: "PyPI opentok 3.15 with a Vonage application",
        form: Form::Jwt(RS256_TYP),
        claims: r#"{"ist":"project","iat":<iat>,"exp":<exp>,"application_id":"<id>","jti":"<uuid>"}"#,
        lifetime: Some(180),
    },
    SdkToken {
        sdk: "PyPI opentok 3.15",
        form: Form::Jwt(HS256_TYP),
        claims: r#"{"ist":"project","iat":<iat>,"exp":<exp>,"iss":"<id>","jti":"0.8375021376110734"}"#,
        lifetime: Some(180),
    },
];

/// Client tokens, for a publisher. PHP's opentok with a Vonage application is missing: it signs with HS256 and the private key
/// as the secret (`OpenTok.php`, `generateToken`), which nobody who has only the public key can verify.
pub const CLIENT: [SdkToken; 20] = [
    // `VideoClient.java` (`generateToken`), `TokenOptions.java`.
    SdkToken {
        sdk: "vonage-java-sdk 9.13",
        form: Form::Jwt(RS256_TYP),
        claims: concat!(
            r#"{"application_id":"<id>","exp":<exp>,"role":"publisher","session_id":"<session>","#,
            r#""scope":"session.connect","iat":<iat>,"jti":"<uuid>"}"#,
        ),
        lifetime: Some(24 * HOUR),
    },
    // `Session.java` (`generateToken`), `TokenGenerator.java`.
    SdkToken {
        sdk: "Java opentok 4.17 with a Vonage application",
        form: Form::Jwt(RS256_TYP),
        claims: concat!(
            r#"{"application_id":"<id>","session_id":"<session>","nonce":-1155484576,"role":"publisher","#,
            r#""scope":"session.connect","exp":<exp>,"jti":"<uuid>","iat":<iat>}"#,
        ),
        lifetime: Some(24 * HOUR),
    },
    SdkToken {
        sdk: "Java opentok 4.17",
        form: Form::Jwt(HS256),
        claims: concat!(
            r#"{"session_id":"<session>","nonce":-1155484576,"role":"publisher","scope":"session.connect","#,
            r#""ist":"project","iss":"<id>","jti":"2fHcvO8V5Rk-0pYq_w3uXg","exp":<exp>,"iat":<iat>}"#,
        ),
        lifetime: Some(24 * HOUR),
    },
    // The only T1 token in URL-safe base64. The alphabets differ for `>`, `?` and `~`, which only layout classes can bring in:
    // Java does not percent-encode them.
    SdkToken {
        sdk: "Java opentok 4.17, T1",
        form: Form::T1UrlSafe,
        claims: concat!(
            "create_time=<iat>&expire_time=<exp>&session_id=<session>&nonce=-1155484576&role=publisher",
            "&scope=session.connect&initial_layout_class_list=???>>>~~~",
        ),
        lifetime: Some(24 * HOUR),
    },
    // `VideoTokenGenerator.cs`, `TokenAdditionalClaims.cs` (`ToDataDictionary`).
    SdkToken {
        sdk: ".NET Vonage 8.35, and .NET OpenTok 3.22 with a Vonage application",
        form: Form::Jwt(RS256_TYP),
        claims: concat!(
            r#"{"iat":<iat>,"application_id":"<id>","jti":"mVv8+Qm/0tqFv1R9k8wT6cVbR0x5GgQ2pN4ZtJYd3o"#,
            r#"sKfAhL7uEiXyBzPwUrMnC1/a+jS5D2qWeHlO8vT6bFg==","role":"publisher","session_id":"<session>","#,
            r#""scope":"session.connect"}"#,
        ),
        lifetime: None,
    },
    // `Session.cs` (`GenerateToken` calls `GenerateT1Token`).
    SdkToken {
        sdk: ".NET OpenTok 3.22, T1",
        form: Form::T1,
        claims: "session_id=<session>&create_time=<iat>&nonce=736281&role=publisher",
        lifetime: None,
    },
    // `video.rb` (`generate_client_token`), vonage-jwt 0.2 `jwt.rb`.
    SdkToken {
        sdk: "Ruby vonage 7.35",
        form: Form::Jwt(TYP_RS256),
        claims: concat!(
            r#"{"iat":<iat>,"jti":"<uuid>","exp":<exp>,"application_id":"<id>","scope":"session.connect","#,
            r#""session_id":"<session>","role":"publisher","initial_layout_class_list":"","sub":"video","#,
            r#""acl":{"paths":{"/session/**":{}}}}"#,
        ),
        lifetime: Some(900),
    },
    // `token_generator.rb` (`GENERATE_JWT_LAMBDA`).
    SdkToken {
        sdk: "Ruby opentok 4.13",
        form: Form::Jwt(TYP_HS256),
        claims: concat!(
            r#"{"iss":"<id>","ist":"project","iat":<iat>,"nonce":0.2713861092,"role":"publisher","#,
            r#""scope":"session.connect","session_id":"<session>"}"#,
        ),
        lifetime: None,
    },
    SdkToken {
        sdk: "Ruby opentok 4.13, T1",
        form: Form::T1,
        claims: "role=publisher&session_id=<session>&create_time=<iat>&nonce=0.2713861092",
        lifetime: None,
    },
    // `Client.php` (`generateClientToken`), vonage/jwt 0.5.1 `TokenGenerator.php` (`factory`). No `role`: a publisher.
    SdkToken {
        sdk: "PHP vonage/video 1.3",
        form: Form::Jwt(TYP_RS256),
        claims: concat!(
            r#"{"iat":<iat>,"exp":<exp>,"jti":"<uuid>","application_id":"<id>","sub":"video","#,
            r#""scope":"session.connect","session_id":"<session>","acl":{"paths":{"/session/**":{}}}}"#,
        ),
        lifetime: Some(900),
    },
    // `OpenTok.php` (`generateToken`): options that are not given stay as `null`.
    SdkToken {
        sdk: "PHP opentok 4.21",
        form: Form::Jwt(TYP_HS256),
        claims: concat!(
            r#"{"iss":"<id>","iat":<iat>,"session_id":"<session>","role":"publisher","ist":"project","#,
            r#""nonce":1202342763,"scope":"session.connect","data":null,"expireTime":null,"#,
            r#""initial_layout_class_list":""}"#,
        ),
        lifetime: None,
    },
    SdkToken {
        sdk: "PHP opentok 4.21 with an integer key",
        form: Form::Jwt(TYP_HS256),
        claims: concat!(
            r#"{"iss":<id>,"iat":<iat>,"session_id":"<session>","role":"publisher","ist":"project","#,
            r#""nonce":1202342763,"scope":"session.connect","data":null,"expireTime":null,"#,
            r#""initial_layout_class_list":""}"#,
        ),
        lifetime: None,
    },
    // `OpenTok.php` (`returnLegacyToken`).
    SdkToken {
        sdk: "PHP opentok 4.21, T1",
        form: Form::T1,
        claims: concat!(
            "session_id=<session>&create_time=<iat>&role=publisher&nonce=1700000000.12341202342763",
            "&initial_layout_class_list=",
        ),
        lifetime: None,
    },
    // `packages/video/lib/video.ts` and npm opentok's `lib/opentok.js` (`generateToken`).
    SdkToken {
        sdk: "npm @vonage/video 1.28, and npm opentok 2.23 with a Vonage application",
        form: Form::Jwt(RS256_TYP),
        claims: concat!(
            r#"{"scope":"session.connect","session_id":"<session>","role":"publisher","#,
            r#""initial_layout_class_list":"","exp":<exp>,"sub":"video","acl":{"paths":{"/session/**":{}}},"#,
            r#""jti":"<uuid>","iat":<iat>,"application_id":"<id>"}"#,
        ),
        lifetime: Some(24 * HOUR),
    },
    SdkToken {
        sdk: "npm opentok 2.23",
        form: Form::Jwt(HS256_TYP),
        claims: concat!(
            r#"{"iss":"<id>","ist":"project","iat":<iat>,"exp":<exp>,"session_id":"<session>","#,
            r#""create_time":<iat>,"nonce":0.2713861092,"role":"publisher","expire_time":<exp>,"#,
            r#""initial_layout_class_list":"","scope":"session.connect"}"#,
        ),
        lifetime: Some(24 * HOUR),
    },
    // opentok-token 1.1.1 `index.js`.
    SdkToken {
        sdk: "npm opentok 2.23, T1",
        form: Form::T1,
        claims: concat!(
            "session_id=<session>&create_time=<iat>&nonce=0.2713861092&role=publisher&expire_time=<exp>",
            "&initial_layout_class_list=&scope=session.connect",
        ),
        lifetime: Some(24 * HOUR),
    },
    // `video/src/vonage_video/models/token.py` (vonage-video 1.6.1).
    SdkToken {
        sdk: "PyPI vonage 4.9",
        form: Form::Jwt(RS256_TYP),
        claims: concat!(
            r#"{"session_id":"<session>","role":"publisher","exp":<exp>,"jti":"<uuid>","iat":<iat>,"#,
            r#""subject":"video","scope":"session.connect","acl":{"paths":{"/session/**":{}}},"#,
            r#""application_id":"<id>"}"#,
        ),
        lifetime: Some(900),
    },
    // `opentok/opentok.py` (`generate_token`).
    SdkToken {
        sdk: "PyPI opentok 3.15 with a Vonage application",
        form: Form::Jwt(RS256_TYP),
        claims: concat!(
            r#"{"session_id":"<session>","role":"publisher","iat":<iat>,"exp":<exp>,"#,
            r#""scope":"session.connect","application_id":"<id>","jti":"<uuid>","subject":"video","#,
            r#""acl":{"paths":{"/session/**":{}}}}"#,
        ),
        lifetime: Some(24 * HOUR),
    },
    SdkToken {
        sdk: "PyPI opentok 3.15",
        form: Form::Jwt(HS256_TYP),
        claims: concat!(
            r#"{"session_id":"<session>","role":"publisher","iat":<iat>,"exp":<exp>,"#,
            r#""scope":"session.connect","iss":"<id>","ist":"project","nonce":493817}"#,
        ),
        lifetime: Some(24 * HOUR),
    },
    SdkToken {
        sdk: "PyPI opentok 3.15, T1",
        form: Form::T1,
        claims: concat!(
            "session_id=<session>&create_time=<iat>&expire_time=<exp>&role=publisher&nonce=493817",
            "&initial_layout_class_list=",
        ),
        lifetime: Some(24 * HOUR),
    },
];

impl SdkToken {
    /// Whether it is signed with a unified application's RSA key.
    #[must_use]
    pub fn is_unified(&self) -> bool {
        matches!(self.form, Form::Jwt(header) if header.contains("RS256"))
    }

    /// The token, issued at `iat` (seconds since 1970) for an application and, if it is a client token, for a session.
    ///
    /// # Panics
    /// When the application's key is not one for this form.
    #[must_use]
    pub fn issue(&self, of: &Application, session: &str, iat: u64) -> String {
        let claims = self
            .claims
            .replace("<id>", &of.id)
            .replace("<session>", session)
            .replace("<iat>", &iat.to_string())
            .replace("<exp>", &(iat + self.lifetime.unwrap_or_default()).to_string())
            .replace("<uuid>", &uuid::Uuid::new_v4().to_string());
        match self.form {
            Form::Jwt(header) => signed_text(header, &claims, &of.key),
            Form::T1 => format!("T1=={}", STANDARD.encode(t1(of, &claims))),
            Form::T1UrlSafe => format!("T1=={}", URL_SAFE.encode(t1(of, &claims))),
        }
    }
}

fn t1(of: &Application, query: &str) -> String {
    let mut mac = Hmac::<Sha1>::new_from_slice(of.key.as_bytes()).expect("a key of any length");
    mac.update(query.as_bytes());
    let signature: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("partner_id={}&sig={signature}:{query}", of.id)
}
