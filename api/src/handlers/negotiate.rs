//! What a client wants to be answered in: format and shape, from `Accept` and `pretty`. Pure.

use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};

use crate::codec::{JSON, PROTOBUF, YAML};
use crate::request::Query;
use crate::status::Error;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    Json,
    Yaml,
    Protobuf,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shape {
    /// The object, or the list, itself.
    Object,
    /// `as=Table`.
    Table,
    /// `as=PartialObjectMetadata` or `…List`.
    Metadata,
}

/// The chosen representation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Accept {
    pub format: Format,
    pub shape: Shape,
    pub pretty: bool,
}

/// What a Table's rows carry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

// === impl Format ===

impl Format {
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => JSON,
            Self::Yaml => YAML,
            Self::Protobuf => PROTOBUF,
        }
    }
}

// === impl Accept ===

impl Accept {
    pub const JSON: Self = Self {
        format: Format::Json,
        shape: Shape::Object,
        pretty: false,
    };

    /// The first JSON clause wins, because JSON is what is at hand; YAML and protobuf are for who accepts nothing else.
    pub fn parse(headers: &HeaderMap, query: &Query) -> Result<Self, Error> {
        let pretty = query.flag("pretty");
        let chosen = |(format, shape)| Self {
            format,
            shape,
            pretty,
        };
        let mut header = headers.get_all(ACCEPT).iter().peekable();
        if header.peek().is_none() {
            return Ok(chosen((Format::Json, Shape::Object)));
        }
        let mut other = None;
        for value in header {
            let clauses = value.to_str().unwrap_or_default().split(',');
            for clause in clauses.filter(|clause| !clause.trim().is_empty()) {
                match parse_clause(clause) {
                    Some(found @ (Format::Json, _)) => return Ok(chosen(found)),
                    Some(found) => other = other.or(Some(found)),
                    None => {}
                }
            }
        }
        // An empty header accepts everything.
        let empty = headers
            .get_all(ACCEPT)
            .iter()
            .all(|value| value.as_bytes().trim_ascii().is_empty());
        match other {
            Some(found) => Ok(chosen(found)),
            None if empty => Ok(chosen((Format::Json, Shape::Object))),
            None => Err(Error::not_acceptable(&[JSON, YAML, PROTOBUF])),
        }
    }
}

fn parse_clause(clause: &str) -> Option<(Format, Shape)> {
    let mut parts = clause.split(';').map(str::trim);
    let format = match parts.next()? {
        JSON | "*/*" | "application/*" => Format::Json,
        YAML => Format::Yaml,
        PROTOBUF => Format::Protobuf,
        _ => return None,
    };
    let mut shape = Shape::Object;
    for parameter in parts {
        match parameter.split_once('=') {
            Some(("as", "Table")) => shape = Shape::Table,
            Some(("as", "PartialObjectMetadata" | "PartialObjectMetadataList")) => {
                shape = Shape::Metadata;
            }
            Some(("as", _)) => return None,
            Some(("g", group)) if group != "meta.k8s.io" => return None,
            Some(("v", version)) if !matches!(version, "v1" | "v1beta1") => return None,
            _ => {}
        }
    }
    Some((format, shape))
}

/// `includeObject`: metadata unless said otherwise.
pub fn include(query: &Query) -> Result<Include, Error> {
    match query.first("includeObject").unwrap_or_default() {
        "" | "Metadata" => Ok(Include::Metadata),
        "None" => Ok(Include::None),
        "Object" => Ok(Include::Object),
        other => Err(Error::bad_request(format!(
            "unrecognized includeObject value: {other:?}"
        ))),
    }
}

/// The media type of the body; absent means JSON.
pub fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
    value.unwrap_or(JSON)
}

/// The manager of a write: what the client said, else its program's name.
pub fn manager<'a>(field_manager: &'a str, headers: &'a HeaderMap) -> &'a str {
    if !field_manager.is_empty() {
        return field_manager;
    }
    let agent = headers
        .get(http::header::USER_AGENT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let name = agent.split('/').next().unwrap_or_default();
    if name.is_empty() {
        return "unknown";
    }
    let mut end = name.len().min(128);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(header: &str) -> Result<(Format, Shape), String> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, header.parse().expect("a header value"));
        Accept::parse(&headers, &Query::default())
            .map(|accept| (accept.format, accept.shape))
            .map_err(|error| error.message)
    }

    #[test]
    fn json_is_preferred_and_the_shape_is_that_of_its_clause() {
        use Format::{Json, Protobuf, Yaml};
        for (header, expect) in [
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
                (Json, Shape::Table),
            ),
            (
                "application/vnd.kubernetes.protobuf,application/json",
                (Json, Shape::Object),
            ),
            (
                "application/vnd.kubernetes.protobuf, */*",
                (Json, Shape::Object),
            ),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
                (Json, Shape::Metadata),
            ),
            (
                "application/vnd.kubernetes.protobuf",
                (Protobuf, Shape::Object),
            ),
            ("application/yaml", (Yaml, Shape::Object)),
            ("", (Json, Shape::Object)),
        ] {
            assert_eq!(accept(header), Ok(expect), "{header}");
        }
        assert_eq!(
            accept("text/plain"),
            Err("only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf".to_owned())
        );
    }

    #[test]
    fn the_manager_is_named_or_the_program() {
        let mut headers = HeaderMap::new();
        assert_eq!(manager("", &headers), "unknown");
        headers.insert(
            "user-agent",
            "kubectl/v1.32 (linux)".parse().expect("a value"),
        );
        assert_eq!(manager("", &headers), "kubectl");
        assert_eq!(manager("me", &headers), "me");
    }
}
