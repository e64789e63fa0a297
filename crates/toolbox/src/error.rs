//! How a tool fails: one line for the user.

/// A tool's failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The arguments make no sense; the text is the usage.
    #[error("{0}")]
    Usage(String),
    /// The system refused.
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
    /// A name has no address.
    #[error("bad address '{0}'")]
    Name(String),
    /// A server answered something that is not success.
    #[error("server returned error: {0}")]
    Http(String),
    /// No answer in time.
    #[error("download timed out")]
    Timeout,
    /// A name server said no, or nothing.
    #[error("{0}")]
    Dns(String),
}

impl Error {
    /// An IO error of an operation on something.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io(what.into(), source)
    }
}
