//! What the table says of an Ingress or a Gateway: the URLs it answers at, with the ports that are really open. Pure.

use host::ingress::Listening;
use serde_json::Value;

/// `http://shop.example/ (at 127.0.0.1:41234: port 80 is not permitted)`
pub(crate) fn addresses(kind: &str, object: &Value, listeners: &[Listening]) -> String {
    let asked = match kind {
        "Ingress" => ingress(object),
        "Gateway" => gateway(object),
        _ => return String::new(),
    };
    let mut shown: Vec<String> = Vec::new();
    for (port, host) in asked {
        let listening = listeners.iter().find(|l| l.port == port);
        let text = listening.and_then(|listening| url(listening, &host));
        if let Some(text) = text.filter(|text| !shown.contains(text)) {
            shown.push(text);
        }
    }
    shown.join(", ")
}

/// Ports and hosts; an empty host is any.
fn ingress(object: &Value) -> Vec<(u16, String)> {
    let hosts: Vec<String> = items(object, "/spec/rules")
        .iter()
        .map(|rule| text(rule, "/host"))
        .collect();
    let hosts = if hosts.is_empty() {
        vec![String::new()]
    } else {
        hosts
    };
    let encrypted = !items(object, "/spec/tls").is_empty();
    let port = if encrypted { 443 } else { 80 };
    hosts.into_iter().map(|host| (port, host)).collect()
}

fn gateway(object: &Value) -> Vec<(u16, String)> {
    let listeners = items(object, "/spec/listeners").iter();
    let port = |listener: &Value| {
        let port = listener.pointer("/port").and_then(Value::as_u64);
        port.and_then(|port| u16::try_from(port).ok())
    };
    listeners
        .filter_map(|listener| Some((port(listener)?, text(listener, "/hostname"))))
        .collect()
}

fn items<'v>(object: &'v Value, path: &str) -> &'v [Value] {
    let found = object.pointer(path).and_then(Value::as_array);
    found.map_or(&[], Vec::as_slice)
}

fn text(object: &Value, path: &str) -> String {
    let found = object.pointer(path).and_then(Value::as_str);
    found.unwrap_or_default().to_owned()
}

fn url(listening: &Listening, host: &str) -> Option<String> {
    let at = listening.address?;
    let (scheme, usual) = if listening.tls {
        ("https", 443)
    } else {
        ("http", 80)
    };
    let port = if at.port() == usual {
        String::new()
    } else {
        format!(":{}", at.port())
    };
    let name = if host.is_empty() {
        at.ip().to_string()
    } else {
        host.to_owned()
    };
    let mut remarks = Vec::new();
    if !host.is_empty() {
        remarks.push(format!("at {at}"));
    }
    remarks.extend(listening.problem.clone());
    let url = format!("{scheme}://{name}{port}/");
    Some(if remarks.is_empty() {
        url
    } else {
        format!("{url} ({})", remarks.join("; "))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn urls_have_the_port_that_is_open() {
        let listeners = [Listening {
            port: 80,
            tls: false,
            address: Some(([127, 0, 0, 1], 4080).into()),
            problem: Some("port 80 is taken on 127.0.0.1".to_owned()),
        }];
        let object = json!({"spec": {"rules": [{"host": "shop.example"}]}});
        assert_eq!(
            addresses("Ingress", &object, &listeners),
            "http://shop.example:4080/ (at 127.0.0.1:4080; port 80 is taken on 127.0.0.1)"
        );
        let object = json!({"spec": {"listeners": [{"port": 80}, {"port": 81}]}});
        assert_eq!(
            addresses("Gateway", &object, &listeners),
            "http://127.0.0.1:4080/ (port 80 is taken on 127.0.0.1)"
        );
    }
}
