//! The operations of the API: one list for the router and for the OpenAPI 3.1 document. `fixtures/openapi.json` is a copy of the
//! document.

use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::handlers::{archive_extensions, archives, callbacks, join, operator, sessions};
use super::state::Shared;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "archiver",
        description = "Sessions and their archives, as the server SDKs of Vonage and OpenTok call them. What is ours and not \
                       Vonage's says so.",
    ),
    modifiers(&Security),
    security(("bearer" = []), ("opentok" = [])),
)]
struct Description;

/// When a request token is valid (`validity.rs`).
const TIMES: &str = "Valid until `exp`, which may be at most 24 hours after `iat` (after the request, without `iat`). Without `exp`: \
                     for 15 minutes after `iat`. Without both: never. Clocks may differ by 60 seconds.";

struct Security;

impl Modify for Security {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("JWT")
            .description(Some(format!("A unified application: RS256, claim `application_id`. {TIMES}")))
            .build();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        let operator =
            HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("The operators' token")).build();
        components.add_security_scheme("operator", SecurityScheme::Http(operator));
        let project = format!("A legacy project: HS256, claims `iss` and `ist`. {TIMES}");
        let legacy = ApiKeyValue::with_description("X-OPENTOK-AUTH".to_owned(), project);
        components.add_security_scheme("opentok", SecurityScheme::ApiKey(ApiKey::Header(legacy)));
    }
}

/// All operations of the document, with their handlers.
pub(super) fn operations() -> OpenApiRouter<Shared> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(sessions::create))
        .routes(routes!(sessions::streams, sessions::classes))
        .routes(routes!(sessions::stream))
        .routes(routes!(join::join))
        .routes(routes!(archives::list, archives::start))
        .routes(routes!(archives::get, archives::delete))
        .routes(routes!(archives::stop))
        .routes(routes!(archives::layout))
        .routes(routes!(archives::streams))
        .routes(routes!(archive_extensions::report))
        .routes(routes!(archive_extensions::thumbnail))
        .routes(routes!(archive_extensions::clip))
        .routes(routes!(archive_extensions::recompose))
        .routes(routes!(callbacks::list, callbacks::register))
        .routes(routes!(callbacks::unregister))
        .routes(routes!(operator::jobs))
        .routes(routes!(operator::parked))
        .routes(routes!(operator::callbacks))
        .routes(routes!(operator::resend))
}

/// The OpenAPI document.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    operations().into_openapi()
}

#[cfg(test)]
mod tests {
    /// Whoever generates clients of it sees here what changes.
    #[test]
    fn the_document_is_the_one_that_is_kept() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/openapi.json");
        let text = super::document().to_pretty_json().expect("JSON") + "\n";
        if std::env::var_os("UPDATE_FIXTURES").is_some() {
            std::fs::write(&path, &text).expect("write");
        }
        let kept = std::fs::read_to_string(&path).expect("document");
        assert!(text.contains("\"openapi\": \"3.1"), "{text}");
        assert_eq!(kept, text, "{} is old: run the tests with UPDATE_FIXTURES=1", path.display());
    }
}
