//! An HTTP client on `wasi:http`: the host connects, speaks TLS and checks certificates. Owns URLs and redirects' targets.

use std::time::Duration;

/// What an applet asks for.
pub struct Request {
    pub method: String,
    pub url: Url,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub connect_timeout: Option<Duration>,
    /// When everything must be over, by `os::since_start`.
    pub deadline: Option<Duration>,
}

/// Why there is no answer, or no more of it.
#[cfg_attr(
    not(target_os = "wasi"),
    expect(dead_code, reason = "natively nothing is ever sent")
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    NoSuchHost,
    NotConnected(String),
    TimedOut,
    Tls(String),
    Interrupted,
    Other(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoSuchHost => f.write_str("the host's name could not be resolved"),
            Self::NotConnected(why) => write!(f, "can't connect: {why}"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Tls(why) => write!(f, "TLS: {why}"),
            Self::Interrupted => f.write_str("interrupted"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

/// `scheme://[user[:password]@]authority/path?query`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub https: bool,
    pub user: Option<String>,
    /// Host, and port if it is given.
    pub authority: String,
    pub path: String,
}

impl Url {
    /// Without a scheme, it is http.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let https = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            other => return Err(format!("not an http or https url: '{other}:'")),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (user, authority) = match authority.rsplit_once('@') {
            Some((user, authority)) => (Some(user.to_owned()), authority),
            None => (None, authority),
        };
        if authority.is_empty() || authority.contains(char::is_whitespace) {
            return Err(format!("bad address '{text}'"));
        }
        let path = match path {
            "" => "/".to_owned(),
            query if query.starts_with('?') => format!("/{query}"),
            path => path.to_owned(),
        };
        Ok(Self {
            https,
            user,
            authority: authority.to_owned(),
            path: path.replace(' ', "%20"),
        })
    }

    /// Where a `Location` leads from here.
    pub fn join(&self, location: &str) -> Result<Self, String> {
        if location.contains("://") {
            return Self::parse(location);
        }
        let scheme = if self.https { "https" } else { "http" };
        if let Some(rest) = location.strip_prefix("//") {
            return Self::parse(&format!("{scheme}://{rest}"));
        }
        let path = match location {
            absolute if absolute.starts_with('/') => absolute.to_owned(),
            relative => {
                let before = self.path.split('?').next().unwrap_or_default();
                let directory = before
                    .rsplit_once('/')
                    .map_or("", |(directory, _)| directory);
                format!("{directory}/{relative}")
            }
        };
        Self::parse(&format!("{scheme}://{}{path}", self.authority))
    }

    /// The name a file from there is given.
    pub fn file_name(&self) -> &str {
        let path = self.path.split('?').next().unwrap_or_default();
        path.rsplit('/')
            .next()
            .filter(|name| !name.is_empty())
            .unwrap_or("index.html")
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// What a status is called.
pub fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        413 => "Payload Too Large",
        415 => "Unsupported Media Type",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "",
    }
}

pub use imp::{Response, send};

#[cfg(target_os = "wasi")]
mod imp {
    use wasip2::http::outgoing_handler;
    use wasip2::http::types::{
        ErrorCode, Fields, IncomingBody, IncomingResponse, Method, OutgoingBody, OutgoingRequest,
        RequestOptions, Scheme,
    };
    use wasip2::io::poll::Pollable;
    use wasip2::io::streams::{InputStream, StreamError};

    use super::{Error, Request};
    use crate::os::{self, Waited};

    /// The beginning of an answer; its body is read bit by bit. Fields are dropped in the order the host demands.
    pub struct Response {
        pub status: u16,
        pub headers: Vec<(String, String)>,
        stream: InputStream,
        _body: IncomingBody,
        _response: IncomingResponse,
        deadline: Option<std::time::Duration>,
    }

    pub fn send(request: &Request) -> Result<Response, Error> {
        let headers = Fields::new();
        for (name, value) in &request.headers {
            headers.append(name, value.as_bytes()).map_err(|error| {
                Error::Other(format!("header '{name}' cannot be sent: {error:?}"))
            })?;
        }
        if !request.body.is_empty() || matches!(request.method.as_str(), "POST" | "PUT" | "PATCH") {
            let length = request.body.len().to_string();
            headers
                .append("content-length", length.as_bytes())
                .map_err(|error| {
                    Error::Other(format!("the body's length cannot be sent: {error:?}"))
                })?;
        }
        let outgoing = OutgoingRequest::new(headers);
        let method = match request.method.as_str() {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            "PUT" => Method::Put,
            "DELETE" => Method::Delete,
            "PATCH" => Method::Patch,
            "OPTIONS" => Method::Options,
            other => Method::Other(other.to_owned()),
        };
        let scheme = if request.url.https {
            Scheme::Https
        } else {
            Scheme::Http
        };
        let bad = |what: &'static str| move |()| Error::Other(format!("bad {what}"));
        outgoing.set_method(&method).map_err(bad("method"))?;
        outgoing.set_scheme(Some(&scheme)).map_err(bad("scheme"))?;
        outgoing
            .set_authority(Some(&request.url.authority))
            .map_err(bad("address"))?;
        outgoing
            .set_path_with_query(Some(&request.url.path))
            .map_err(bad("path"))?;
        let options = RequestOptions::new();
        if let Some(time) = request.connect_timeout {
            let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            options
                .set_connect_timeout(Some(nanos))
                .map_err(bad("timeout"))?;
        }
        let body = outgoing.body().map_err(bad("body"))?;
        let answer =
            outgoing_handler::handle(outgoing, Some(options)).map_err(|code| error(&code))?;
        write(body, &request.body)?;
        wait(&answer.subscribe(), request.deadline)?;
        let response = match answer.get() {
            Some(Ok(Ok(response))) => response,
            Some(Ok(Err(code))) => return Err(error(&code)),
            _ => return Err(Error::Other("the host gave no answer".to_owned())),
        };
        let entries = response.headers().entries();
        let text =
            |(name, value): (String, Vec<u8>)| (name, String::from_utf8_lossy(&value).into_owned());
        let body = response.consume().map_err(bad("answer"))?;
        Ok(Response {
            status: response.status(),
            headers: entries.into_iter().map(text).collect(),
            stream: body.stream().map_err(bad("answer"))?,
            _body: body,
            _response: response,
            deadline: request.deadline,
        })
    }

    fn write(body: OutgoingBody, bytes: &[u8]) -> Result<(), Error> {
        let closed = || Error::Other("the request's body could not be sent".to_owned());
        let stream = body.write().map_err(|()| closed())?;
        for chunk in bytes.chunks(4_096) {
            if stream.blocking_write_and_flush(chunk).is_err() {
                // The answer says why.
                return Ok(());
            }
        }
        drop(stream);
        OutgoingBody::finish(body, None).map_err(|code| error(&code))
    }

    fn wait(pollable: &Pollable, deadline: Option<std::time::Duration>) -> Result<(), Error> {
        match os::wait(pollable, deadline) {
            Waited::Ready => Ok(()),
            Waited::TimedOut => Err(Error::TimedOut),
            Waited::Interrupted => Err(Error::Interrupted),
        }
    }

    impl Response {
        /// The next bytes of the body; none at its end.
        pub fn next(&mut self) -> Result<Vec<u8>, Error> {
            loop {
                wait(&self.stream.subscribe(), self.deadline)?;
                match self.stream.read(64 << 10) {
                    Ok(bytes) if bytes.is_empty() => {}
                    Ok(bytes) => return Ok(bytes),
                    Err(StreamError::Closed) => return Ok(Vec::new()),
                    Err(StreamError::LastOperationFailed(failed)) => {
                        return Err(Error::Other(format!(
                            "the answer broke off: {}",
                            failed.to_debug_string()
                        )));
                    }
                }
            }
        }
    }

    fn error(code: &ErrorCode) -> Error {
        match code {
            ErrorCode::DnsError(_) | ErrorCode::DnsTimeout | ErrorCode::DestinationNotFound => {
                Error::NoSuchHost
            }
            ErrorCode::ConnectionRefused => Error::NotConnected("Connection refused".to_owned()),
            ErrorCode::DestinationUnavailable => {
                Error::NotConnected("nobody answers there".to_owned())
            }
            ErrorCode::DestinationIpProhibited | ErrorCode::HttpRequestDenied => {
                Error::NotConnected("Permission denied".to_owned())
            }
            ErrorCode::DestinationIpUnroutable => {
                Error::NotConnected("Network is unreachable".to_owned())
            }
            ErrorCode::ConnectionTimeout
            | ErrorCode::HttpResponseTimeout
            | ErrorCode::ConnectionReadTimeout => Error::TimedOut,
            ErrorCode::TlsProtocolError
            | ErrorCode::TlsCertificateError
            | ErrorCode::TlsAlertReceived(_) => Error::Tls(format!("{code:?}")),
            ErrorCode::InternalError(Some(why)) => Error::Other(why.clone()),
            code => Error::Other(format!("{code:?}")),
        }
    }
}

#[cfg(not(target_os = "wasi"))]
mod imp {
    use super::{Error, Request};

    /// Never made natively.
    pub struct Response {
        pub status: u16,
        pub headers: Vec<(String, String)>,
    }

    pub fn send(request: &Request) -> Result<Response, Error> {
        let Request {
            method,
            headers,
            body,
            connect_timeout,
            deadline,
            ..
        } = request;
        let _ = (method, headers, body, connect_timeout, deadline);
        Err(Error::Other("HTTP needs wasi:http".to_owned()))
    }

    impl Response {
        pub fn next(&mut self) -> Result<Vec<u8>, Error> {
            Ok(Vec::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let url = Url::parse("https://me:pw@example.com:8443/a/b?c=d#e").unwrap();
        assert!(url.https);
        assert_eq!(
            (url.user.as_deref(), url.authority.as_str()),
            (Some("me:pw"), "example.com:8443")
        );
        assert_eq!((url.path.as_str(), url.file_name()), ("/a/b?c=d", "b"));
        assert_eq!(
            Url::parse("web?x=1").unwrap().to_string(),
            "http://web/?x=1"
        );
        assert_eq!(Url::parse("web").unwrap().file_name(), "index.html");
        assert!(Url::parse("ftp://x").is_err() && Url::parse("http:///x").is_err());
    }

    #[test]
    fn locations_lead_on() {
        let url = Url::parse("http://a/b/c?d").unwrap();
        for (location, expected) in [
            ("https://x/y", "https://x/y"),
            ("/e", "http://a/e"),
            ("e", "http://a/b/e"),
            ("//x/e", "http://x/e"),
        ] {
            assert_eq!(url.join(location).unwrap().to_string(), expected);
        }
    }
}
