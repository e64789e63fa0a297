//! Kubernetes' protobuf bodies to JSON and back.
//!
//! ```text
//! body    = "k8s\0" Unknown
//! Unknown = 1: TypeMeta { 1: apiVersion, 2: kind }  2: raw  3: contentEncoding  4: contentType
//! raw     = the object's message, without its TypeMeta
//! ```
//!
//! kubectl 1.32 and later send such bodies. [`decode`] gives the JSON that the same client would have sent: Go's
//! generated code writes every non-pointer scalar, so a zero there means "not set" where JSON would leave it out.

mod decode;
mod encode;
pub(crate) mod wire;

pub use decode::{decode, decode_message};
pub use encode::{EncodeError, encode, encode_message};

/// What a body of this kind begins with.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// Why bytes are not an object.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The first four bytes are others.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    /// The body ends inside a value.
    #[error("unexpected EOF")]
    Truncated,
    /// A number of more than 64 bits.
    #[error("proto: integer overflow")]
    Overflow,
    /// Field numbers begin at one and have 29 bits.
    #[error("proto: illegal tag {0}")]
    Number(u64),
    /// A wire type that this field, or protobuf, does not have.
    #[error("proto: wrong wire type {wire} for field number {number}")]
    WireType {
        /// The field.
        number: u32,
        /// What stood there.
        wire: u64,
    },
    /// Messages nested too deeply.
    #[error("proto: message nested deeper than {0} levels")]
    Depth(usize),
    /// More values than any real object has.
    #[error("proto: more than {0} values in one object")]
    Size(usize),
    /// Text that is not UTF-8.
    #[error("proto: invalid UTF-8 in field {0}")]
    Utf8(String),
    /// A value that its type cannot hold.
    #[error("proto: invalid value in field {0}")]
    Value(String),
    /// No such built-in kind.
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind {
        /// As sent.
        api_version: String,
        /// As sent.
        kind: String,
    },
    /// The envelope holds something else than protobuf or JSON.
    #[error("unsupported content type {0:?} in a protobuf envelope")]
    ContentType(String),
}
