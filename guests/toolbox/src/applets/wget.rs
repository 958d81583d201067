//! `wget`.

use super::encode::base64_of;
use super::{Answer, done, sleep};
use crate::context::Context;
use crate::files;
use crate::http::{self, Request, Response, Url, reason};
use crate::io::{Output, print, why};
use crate::options::{Options, Spec, parse};
use crate::os;

/// Redirections that are followed.
pub const REDIRECTS: u32 = 10;

pub fn start(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "qO:ST:U:P:ct:H:D:sK",
        long: &[
            ("quiet", 'q'),
            ("output-document", 'O'),
            ("server-response", 'S'),
            ("timeout", 'T'),
            ("user-agent", 'U'),
            ("directory-prefix", 'P'),
            ("tries", 't'),
            ("header", 'H'),
            ("post-data", 'D'),
            ("spider", 's'),
            ("no-check-certificate", 'K'),
            ("no-verbose", 'q'),
        ],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    if options.operands.is_empty() {
        return Err("an url is needed".to_owned());
    }
    if options.has('K') {
        return done(
            context.fail("certificates are checked by the host, which cannot be told not to"),
        );
    }
    if options.has('c') {
        return done(context.fail("-c: a download cannot be continued here"));
    }
    let timeout = options.value('T').map(sleep::one).transpose()?;
    let mut code = 0;
    for text in &options.operands {
        let mut request = Request {
            method: if options.has('D') {
                "POST"
            } else if options.has('s') {
                "HEAD"
            } else {
                "GET"
            }
            .to_owned(),
            url: Url::parse(text)?,
            headers: headers(&options)?,
            body: options.value('D').unwrap_or_default().as_bytes().to_vec(),
            connect_timeout: timeout,
            deadline: None,
        };
        if let Err(message) = fetch(context, &options, &mut request, timeout) {
            code = context.fail(message);
        }
    }
    done(code)
}

fn headers(options: &Options) -> Result<Vec<(String, String)>, String> {
    let mut headers = Vec::new();
    for header in options.values('H') {
        let (name, value) = header
            .split_once(':')
            .ok_or_else(|| format!("bad header '{header}'"))?;
        headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    let has = |wanted: &str| {
        headers
            .iter()
            .any(|(name, _): &(String, String)| name.eq_ignore_ascii_case(wanted))
    };
    let agent = !has("user-agent");
    let form = options.has('D') && !has("content-type");
    if agent {
        headers.push((
            "User-Agent".to_owned(),
            options.value('U').unwrap_or("Wget").to_owned(),
        ));
    }
    if form {
        headers.push((
            "Content-Type".to_owned(),
            "application/x-www-form-urlencoded".to_owned(),
        ));
    }
    Ok(headers)
}

/// Sends the request, and again where the answer says; the first answer that is none of these.
pub fn follow(
    request: &mut Request,
    follow: bool,
    mut seen: impl FnMut(&Url, &Response),
) -> Result<Response, http::Error> {
    for _ in 0..=REDIRECTS {
        let mut sent = Request {
            method: request.method.clone(),
            url: request.url.clone(),
            headers: request.headers.clone(),
            body: request.body.clone(),
            ..*request
        };
        if let Some(user) = &request.url.user {
            sent.headers.push((
                "Authorization".to_owned(),
                format!("Basic {}", base64_of(user.as_bytes())),
            ));
        }
        let response = http::send(&sent)?;
        seen(&request.url, &response);
        let moved = matches!(response.status, 301 | 302 | 303 | 307 | 308);
        let Some(location) = response.header("location").filter(|_| moved && follow) else {
            return Ok(response);
        };
        let next = request.url.join(location).map_err(http::Error::Other)?;
        if next.authority != request.url.authority {
            // What was meant for one server is not shown to another.
            request.headers.retain(|(name, _)| {
                !["authorization", "cookie"].contains(&name.to_ascii_lowercase().as_str())
            });
        }
        if matches!(response.status, 303)
            || (request.method == "POST" && matches!(response.status, 301 | 302))
        {
            request.method = "GET".to_owned();
            request.body.clear();
            request
                .headers
                .retain(|(name, _)| !name.eq_ignore_ascii_case("content-type"));
        }
        request.url = next;
    }
    Err(http::Error::Other("too many redirections".to_owned()))
}

fn fetch(
    context: &Context,
    options: &Options,
    request: &mut Request,
    timeout: Option<std::time::Duration>,
) -> Result<(), String> {
    let quiet = options.has('q');
    let host = request.url.authority.clone();
    if !quiet {
        print(&context.stderr, &format!("Connecting to {host}\n"));
    }
    request.deadline = timeout.map(|time| os::since_start() + time);
    let response = follow(request, true, |_, response| {
        if options.has('S') {
            let mut text = format!(
                "  HTTP/1.1 {} {}\n",
                response.status,
                reason(response.status)
            );
            for (name, value) in &response.headers {
                text.push_str(&format!("  {name}: {value}\n"));
            }
            print(&context.stderr, &text);
        }
    });
    let mut response = response.map_err(|error| match error {
        http::Error::NoSuchHost => format!("bad address '{host}'"),
        http::Error::NotConnected(why) => format!("can't connect to remote host ({host}): {why}"),
        http::Error::TimedOut => "download timed out".to_owned(),
        other => other.to_string(),
    })?;
    if !(200..300).contains(&response.status) {
        let reason = reason(response.status);
        return Err(format!(
            "server returned error: HTTP/1.1 {} {reason}",
            response.status
        ));
    }
    if options.has('s') {
        if !quiet {
            print(&context.stderr, "remote file exists\n");
        }
        return Ok(());
    }
    let (name, out) = target(context, options, &request.url)?;
    if !quiet && name != "-" {
        print(&context.stderr, &format!("saving to '{name}'\n"));
    }
    let mut size = 0;
    loop {
        request.deadline = timeout.map(|time| os::since_start() + time);
        let bytes = response.next().map_err(|error| error.to_string())?;
        if bytes.is_empty() {
            break;
        }
        size += bytes.len();
        if out.write(&bytes).is_err() {
            // Who reads from a pipe may have had enough; a file's trouble has been said.
            return if matches!(out, Output::File(_)) {
                Err("write error".to_owned())
            } else {
                Ok(())
            };
        }
        if matches!(out, Output::Stdout) {
            crate::io::flush();
        }
    }
    if !quiet && name != "-" {
        print(&context.stderr, &format!("'{name}' saved ({size} bytes)\n"));
    }
    Ok(())
}

fn target(context: &Context, options: &Options, url: &Url) -> Result<(String, Output), String> {
    let name = match (options.value('O'), options.value('P')) {
        (Some("-"), _) => return Ok(("-".to_owned(), context.stdout.clone())),
        (Some(name), _) => name.to_owned(),
        (None, Some(directory)) => {
            format!("{}/{}", directory.trim_end_matches('/'), url.file_name())
        }
        (None, None) => {
            let name = url.file_name().to_owned();
            if files::lstat(&context.path(&name)).is_ok() {
                return Err(format!("can't open '{name}': File exists"));
            }
            name
        }
    };
    let out = files::create(&context.path(&name), false);
    let out = out.map_err(|error| format!("can't open '{name}': {}", why(&error)))?;
    Ok((name, out))
}
