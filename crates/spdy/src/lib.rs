//! SPDY/3.1 as Kubernetes' stream clients speak it.
//!
//! kubectl up to 1.29 runs `exec` and `attach` over it, and every kubectl runs `port-forward` over it (newer ones tunnel
//! the same bytes inside WebSocket messages). The crate owns the wire format ([`codec`]: a pure decoder and encoder,
//! bounded, which never panic on any bytes) and the server side of a session over any byte stream ([`Session`]).
//!
//! The specification is the SPDY Protocol draft 3 with 3.1's session window; the only peer that matters in practice is
//! Go's spdystream, which leaves flow control out. Where the two differ, [`session`] says how both are served.
//!
//! What is never here: HTTP. A stream is a set of headers and two byte pipes; their meaning is the caller's.

pub mod codec;
mod dictionary;
pub mod frame;
pub mod header_block;
pub mod session;
mod state;
mod stream;

pub use codec::{Decoder, Encoder, Error};
pub use frame::{Frame, Headers, StreamId};
pub use session::{Incoming, Session};
pub use stream::{Pending, Stream};
