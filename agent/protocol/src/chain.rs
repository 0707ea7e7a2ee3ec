//! Errors as people read them.

use std::{error::Error, fmt};

/// An error with its causes on one line, the outermost first: for errors that are borrowed, or have a type of their own. Others
/// say the same as `{:#}` of an `anyhow::Error`.
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a>(pub &'a (dyn Error + 'a));

// === impl Chain ===

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("no way to {to}")]
    struct NoWay {
        to: &'static str,
        source: Option<Box<dyn Error + Send + Sync>>,
    }

    #[test]
    fn causes_follow_in_their_order() {
        let innermost = io::Error::other("no carrier");
        let inner = NoWay { to: "eth0", source: Some(innermost.into()) };
        let outer = NoWay { to: "the pod", source: Some(inner.into()) };
        assert_eq!(Chain(&outer).to_string(), "no way to the pod: no way to eth0: no carrier");
        assert_eq!(Chain(&NoWay { to: "the pod", source: None }).to_string(), "no way to the pod");
    }
}
