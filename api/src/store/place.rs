//! Which store, as people write it down.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::postgres::Address;

/// Where a server keeps its objects.
#[derive(Clone, Debug, Default)]
pub enum Place {
    /// `state.db` in the data directory, or memory where there is no data directory.
    #[default]
    DataDirectory,
    /// `sqlite:PATH`
    Sqlite(PathBuf),
    /// `postgres://…`
    Postgres(Box<Address>),
}

/// A place that is none.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("it must be like sqlite:PATH or postgres://USER@HOST:PORT/DATABASE")]
    Unknown,
    #[error("sqlite: needs the path of a file, like sqlite:/var/lib/coracle/state.db")]
    Path,
    #[error(transparent)]
    Address(#[from] super::Error),
}

impl FromStr for Place {
    type Err = Error;

    /// The text may hold a password and is never part of an error.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text.split_once(':') {
            Some(("sqlite", "" | "//")) => Err(Error::Path),
            Some(("sqlite", path)) => Ok(Self::Sqlite(path.trim_start_matches("//").into())),
            Some(("postgres" | "postgresql", _)) => {
                Ok(Self::Postgres(Box::new(Address::parse(text)?)))
            }
            _ => Err(Error::Unknown),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DataDirectory => f.write_str("the data directory"),
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(address) => write!(f, "{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_it_is_shown_but_for_the_password() {
        for (text, shown) in [
            ("sqlite:state.db", "sqlite:state.db"),
            ("sqlite:///var/lib/state.db", "sqlite:/var/lib/state.db"),
            (
                "postgresql://ann:hush@db/prod",
                "postgres://ann@db:5432/prod",
            ),
        ] {
            let place: Place = text.parse().expect("a place");
            assert_eq!(place.to_string(), shown);
        }
        for wrong in ["", "sqlite:", "mysql://ann:hush@db", "/var/lib/state.db"] {
            let error = wrong.parse::<Place>().expect_err("no place").to_string();
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
