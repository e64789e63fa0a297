//! OpenAPI documents. `/openapi/v2` is the smallest one that every kubectl accepts, in protobuf.

use http::HeaderMap;

use crate::rest::answer::Answer;
use crate::server::ApiServer;
use crate::status::Status;

/// Documents made once per set of served kinds.
#[derive(Default)]
pub struct Documents {}

/// Content type of the protobuf form of OpenAPI v2. Clients ask for it with an `@` where this has a dot; echoing
/// the `@` breaks their parser.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Answers a path below `/openapi/`.
///
/// # Errors
/// 404.
pub fn answer(_api: &ApiServer, path: &str, _headers: &HeaderMap) -> Result<Answer, Status> {
    match path {
        // Document { swagger = 1: "2.0", info = 2 { title = 1: "skiff", version = 2: "1" } }
        "/openapi/v2" => {
            Ok(Answer::bytes(200, V2_PROTOBUF, &b"\x0a\x032.0\x12\x0a\x0a\x05skiff\x12\x011"[..]))
        }
        _ => Err(Status::path_not_found()),
    }
}
