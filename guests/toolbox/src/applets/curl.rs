//! `curl`: the options that scripts use.

use super::encode::base64_of;
use super::wget::follow;
use super::{Answer, done, sleep};
use crate::context::Context;
use crate::files;
use crate::http::{self, Request, Response, Url, reason};
use crate::io::{Output, print, why};
use crate::options::{Options, Spec, parse};
use crate::os;

/// Letters of our own for options that have only names: `1` --connect-timeout, `2` --data-raw, `3` --data-urlencode.
const SPEC: Spec = Spec {
    short: "sSfo:OX:H:d:iILkw:m:u:A:vGe:T:1:2:3:#r:",
    long: &[
        ("silent", 's'),
        ("show-error", 'S'),
        ("fail", 'f'),
        ("output", 'o'),
        ("remote-name", 'O'),
        ("request", 'X'),
        ("header", 'H'),
        ("data", 'd'),
        ("data-binary", 'd'),
        ("data-ascii", 'd'),
        ("data-raw", '2'),
        ("data-urlencode", '3'),
        ("include", 'i'),
        ("head", 'I'),
        ("location", 'L'),
        ("insecure", 'k'),
        ("write-out", 'w'),
        ("max-time", 'm'),
        ("connect-timeout", '1'),
        ("user", 'u'),
        ("user-agent", 'A'),
        ("verbose", 'v'),
        ("get", 'G'),
        ("referer", 'e'),
        ("upload-file", 'T'),
        ("range", 'r'),
    ],
    stop: false,
};

pub fn start(context: &mut Context, args: &[String]) -> Answer {
    let options = match parse(&SPEC, args) {
        Ok(options) => options,
        Err(error) => {
            context.fail(error);
            return done(2);
        }
    };
    if options.operands.is_empty() {
        context.fail("an url is needed");
        return done(2);
    }
    if options.has('k') {
        context.fail("certificates are checked by the host, which cannot be told not to");
        return done(2);
    }
    let mut code = 0;
    for text in &options.operands {
        code = match transfer(context, &options, text) {
            Ok(()) => code,
            Err((failed, message)) => {
                if !options.has('s') || options.has('S') {
                    context.fail(format_args!("({failed}) {message}"));
                }
                failed
            }
        };
    }
    done(code)
}

type Failed = (i32, String);

/// What `-d` and its like say, joined by `&`.
fn data(context: &Context, options: &Options) -> Result<Option<Vec<u8>>, Failed> {
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for text in options.values('d') {
        parts.push(match text.strip_prefix('@') {
            None => text.as_bytes().to_vec(),
            Some(name) => {
                let input = if name == "-" {
                    Ok(context.stdin.clone())
                } else {
                    files::open(&context.path(name))
                };
                let bytes = input.and_then(|input| input.rest());
                bytes.map_err(|error| (26, format!("{name}: {}", why(&error))))?
            }
        });
    }
    parts.extend(options.values('2').map(|text| text.as_bytes().to_vec()));
    for text in options.values('3') {
        let (name, value) = text
            .split_once('=')
            .map_or(("", text), |(name, value)| (name, value));
        let gap = if name.is_empty() { "" } else { "=" };
        parts.push(format!("{name}{gap}{}", escaped(value)).into_bytes());
    }
    Ok((!parts.is_empty()).then(|| parts.join(&b'&')))
}

fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

fn request(context: &Context, options: &Options, text: &str) -> Result<Request, Failed> {
    let mut url = Url::parse(text).map_err(|error| (3, error))?;
    let mut data = data(context, options)?;
    if options.has('G')
        && let Some(query) = data.take()
    {
        let mark = if url.path.contains('?') { '&' } else { '?' };
        let query = String::from_utf8(query)
            .map_err(|_| (2, "what goes into an url must be text".to_owned()))?;
        url.path = format!("{}{mark}{query}", url.path);
    }
    let mut body = data.clone();
    if let Some(name) = options.value('T') {
        let input = if name == "-" {
            Ok(context.stdin.clone())
        } else {
            files::open(&context.path(name))
        };
        let bytes = input.and_then(|input| input.rest());
        body = Some(bytes.map_err(|error| (26, format!("{name}: {}", why(&error))))?);
    }
    let mut headers: Vec<(String, String)> = Vec::new();
    for header in options.values('H') {
        let (name, value) = header
            .split_once(':')
            .ok_or_else(|| (2, format!("bad header '{header}'")))?;
        headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    let mut default = |name: &str, value: String| {
        if !headers
            .iter()
            .any(|(known, _)| known.eq_ignore_ascii_case(name))
        {
            headers.push((name.to_owned(), value));
        }
    };
    default(
        "User-Agent",
        options.value('A').unwrap_or("curl").to_owned(),
    );
    default("Accept", "*/*".to_owned());
    if data.is_some() {
        default(
            "Content-Type",
            "application/x-www-form-urlencoded".to_owned(),
        );
    }
    if let Some(user) = options.value('u') {
        default(
            "Authorization",
            format!("Basic {}", base64_of(user.as_bytes())),
        );
    }
    if let Some(referer) = options.value('e') {
        default("Referer", referer.to_owned());
    }
    if let Some(range) = options.value('r') {
        default("Range", format!("bytes={range}"));
    }
    // `-H 'Name:'` takes a header away.
    headers.retain(|(_, value)| !value.is_empty());
    let time = |letter| {
        options
            .value(letter)
            .map(sleep::one)
            .transpose()
            .map_err(|error| (2, error))
    };
    let method = match options.value('X') {
        Some(method) => method.to_owned(),
        None if options.has('I') => "HEAD".to_owned(),
        None if options.has('T') => "PUT".to_owned(),
        None if data.is_some() => "POST".to_owned(),
        None => "GET".to_owned(),
    };
    Ok(Request {
        method,
        url,
        headers,
        body: body.unwrap_or_default(),
        connect_timeout: time('1')?,
        deadline: time('m')?.map(|time| os::since_start() + time),
    })
}

fn transfer(context: &Context, options: &Options, text: &str) -> Result<(), Failed> {
    let mut request = request(context, options, text)?;
    let started = os::since_start();
    let host = request.url.authority.clone();
    let head = options.has('i') || options.has('I');
    let mut heads = String::new();
    let mut hops = 0_u32;
    let answer = follow(&mut request, options.has('L'), |url, response| {
        hops += 1;
        if head {
            heads.push_str(&head_of(response));
        }
        if options.has('v') {
            print(
                &context.stderr,
                &format!("> {url}\n< {}", head_of(response).replace("\r\n", "\n< ")),
            );
            print(&context.stderr, "\n");
        }
    });
    let outcome = match answer {
        Ok(response) => receive(context, options, &request, response, &heads),
        Err(error) => Err(failed(&error, &host)),
    };
    let (status, size, result) = match outcome {
        Ok((status, size)) => (status, size, Ok(())),
        Err(failed) => (0, 0, Err(failed)),
    };
    let result = match result {
        Ok(()) if options.has('f') && status >= 400 => {
            Err((22, format!("The requested URL returned error: {status}")))
        }
        result => result,
    };
    if let Some(format) = options.value('w') {
        let took = os::since_start() - started;
        let text = format
            .replace("%{http_code}", &format!("{status:03}"))
            .replace("%{response_code}", &format!("{status:03}"))
            .replace("%{size_download}", &size.to_string())
            .replace("%{time_total}", &format!("{:.6}", took.as_secs_f64()))
            .replace("%{url_effective}", &request.url.to_string())
            .replace("%{num_redirects}", &hops.saturating_sub(1).to_string())
            .replace("%{method}", &request.method);
        print(&context.stdout, &super::printf::unescaped(&text));
    }
    result
}

fn head_of(response: &Response) -> String {
    let mut text = format!(
        "HTTP/1.1 {} {}\r\n",
        response.status,
        reason(response.status)
    );
    for (name, value) in &response.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text + "\r\n"
}

fn failed(error: &http::Error, host: &str) -> Failed {
    match error {
        http::Error::NoSuchHost => (6, format!("Could not resolve host: {host}")),
        http::Error::NotConnected(why) => (7, format!("Failed to connect to {host}: {why}")),
        http::Error::TimedOut => (28, "Operation timed out".to_owned()),
        http::Error::Tls(why) => (35, why.clone()),
        http::Error::Interrupted => (130, "interrupted".to_owned()),
        http::Error::Other(why) if why == "too many redirections" => (47, why.clone()),
        http::Error::Other(why) => (56, why.clone()),
    }
}

/// Writes the body where it belongs: status and size.
fn receive(
    context: &Context,
    options: &Options,
    request: &Request,
    mut response: Response,
    heads: &str,
) -> Result<(u16, usize), Failed> {
    let status = response.status;
    let fails = options.has('f') && status >= 400;
    let name = match options.value('o') {
        Some(name) => Some(name.to_owned()),
        None => options.has('O').then(|| request.url.file_name().to_owned()),
    };
    let out = match name.as_deref() {
        _ if fails => Output::Null,
        None | Some("-") => context.stdout.clone(),
        Some(name) => match files::create(&context.path(name), false) {
            Ok(out) => out,
            Err(error) => return Err((23, format!("{name}: {}", why(&error)))),
        },
    };
    let written = |out: &Output, bytes: &[u8]| {
        out.write(bytes)
            .map_err(|_| (23, "Failed writing output".to_owned()))
    };
    written(&out, heads.as_bytes())?;
    let mut size = 0;
    let mut more = request.method != "HEAD";
    while more {
        let bytes = response
            .next()
            .map_err(|error| failed(&error, &request.url.authority))?;
        more = !bytes.is_empty();
        size += bytes.len();
        written(&out, &bytes)?;
        if matches!(out, Output::Stdout) {
            crate::io::flush();
        }
    }
    Ok((status, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_escaped() {
        assert_eq!(escaped("a b&c/ä"), "a%20b%26c%2F%C3%A4");
    }
}
