//! The frames of SPDY/3 (draft 3, section 2) as values.

use bytes::Bytes;

/// A stream's number: odd when the client opened it, 0 means the session.
pub type StreamId = u32;

/// Why a stream ended early (RST_STREAM's status, section 2.6.3).
pub mod reset {
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: u32 = 1;
    /// A frame came for a stream that was never opened.
    pub const INVALID_STREAM: u32 = 2;
    /// The stream was refused before anything was done for it.
    pub const REFUSED_STREAM: u32 = 3;
    /// The sender needs the stream no more.
    pub const CANCEL: u32 = 5;
    /// The peer's window grew beyond what a window can be.
    pub const FLOW_CONTROL_ERROR: u32 = 7;
    /// Data came for a half that its sender had closed.
    pub const STREAM_ALREADY_CLOSED: u32 = 9;
}

/// Why a session ended (GOAWAY's status, section 2.6.6).
pub mod goaway {
    /// A regular end.
    pub const OK: u32 = 0;
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: u32 = 1;
}

/// SETTINGS id of the window that new streams start with (section 2.6.4).
pub const SETTING_INITIAL_WINDOW: u32 = 7;

/// The headers of a stream, in the order sent. Names are lower case on the wire and compared without case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The first value of a header.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Headers {
    fn from_iter<T: IntoIterator<Item = (N, V)>>(pairs: T) -> Self {
        Headers(pairs.into_iter().map(|(n, v)| (n.into(), v.into())).collect())
    }
}

/// One frame. `fin` says that the sender's half of the stream is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream {
        /// The new stream.
        id: StreamId,
        /// The stream it belongs to, or 0.
        associated: StreamId,
        /// 0 (highest) to 7.
        priority: u8,
        /// The sender's half is over at once.
        fin: bool,
        /// The receiver's half is over at once, no reply is expected.
        unidirectional: bool,
        /// What the stream is for.
        headers: Headers,
    },
    /// Accepts a stream.
    SynReply {
        /// The stream.
        id: StreamId,
        /// The sender's half is over at once.
        fin: bool,
        /// The answer's headers; Kubernetes leaves them empty.
        headers: Headers,
    },
    /// Ends a stream at once, both halves.
    RstStream {
        /// The stream.
        id: StreamId,
        /// One of [`reset`].
        status: u32,
    },
    /// Settings of the sender: (id, value).
    Settings(Vec<(u32, u32)>),
    /// To be answered with the same number when the peer chose it.
    Ping(u32),
    /// The sender accepts no more streams.
    GoAway {
        /// The last stream that was accepted.
        last_good: StreamId,
        /// One of [`goaway`].
        status: u32,
    },
    /// More headers of an open stream.
    Headers {
        /// The stream.
        id: StreamId,
        /// The sender's half is over.
        fin: bool,
        /// The headers.
        headers: Headers,
    },
    /// The sender can take more bytes.
    WindowUpdate {
        /// The stream, or 0 for the session.
        id: StreamId,
        /// How many more.
        delta: u32,
    },
    /// Bytes of a stream. The decoder hands a long frame out in pieces; `fin` is on the last.
    Data {
        /// The stream.
        id: StreamId,
        /// The sender's half is over.
        fin: bool,
        /// The bytes.
        data: Bytes,
    },
}
