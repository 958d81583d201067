//! An error in one line, with what caused it.

use std::error::Error;

/// The error and its causes, outermost first. A cause that the text so far ends with is not said again: some libraries
/// print their source themselves, others (hyper) say nothing without it.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let told = cause.to_string();
        if !text.ends_with(&told) {
            text.push_str(": ");
            text.push_str(&told);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::chain;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Told {
        text: &'static str,
        source: Option<Box<Told>>,
    }

    #[test]
    fn every_cause_is_told_once() {
        let cause = |text, source| Told { text, source };
        let refused = || Some(Box::new(cause("connection refused", None)));
        let plain = cause("could not ask the node", refused());
        assert_eq!(chain(&plain), "could not ask the node: connection refused");
        let repeats = cause("could not ask the node: connection refused", refused());
        assert_eq!(
            chain(&repeats),
            "could not ask the node: connection refused"
        );
    }
}
