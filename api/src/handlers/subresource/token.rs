//! `token`: a ServiceAccount's token for some audiences and some time, bound to an object whose end ends it.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use crate::auth::tokens::{Bound, Claims, ISSUER};
use crate::handlers::Call;
use crate::handlers::reply::Reply;
use crate::kinds::strategy::Door;
use crate::object::Object;
use crate::registry::{encode, time};
use crate::schema::GroupVersionKind;
use crate::status::{Cause, Error};

const TOKEN_REQUEST: &str = "io.k8s.api.authentication.v1.TokenRequest";
const HOUR: i64 = 3_600;
/// A node asks for this time in the name of a pod that said nothing: its clients may be too old to read the file again, so
/// the token lasts a year, and the node is told to replace it after the hour.
const EXTENDED_FOR: i64 = HOUR + 7;
const YEAR: i64 = 365 * 86_400;
const LONGEST: i64 = 1 << 32;

pub(super) async fn create(call: &Call<'_>, body: &[u8]) -> Result<Reply, Error> {
    let options = call.query.write_options("CreateOptions")?;
    let gvk = GroupVersionKind {
        group: "authentication.k8s.io".to_owned(),
        version: "v1".to_owned(),
        kind: "TokenRequest".to_owned(),
    };
    let mut warnings = Vec::new();
    let mut request = call.decode(body, TOKEN_REQUEST, &gvk, options.validation, &mut warnings)?;
    let registry = call.registry(Door::Subresource("token"), "", options.dry_run);
    let account = registry.find(&call.path.name)?;
    place(call, &mut request)?;
    request.set_default(&["spec", "expirationSeconds"], HOUR.into());
    if request.list_at(&["spec", "audiences"]).is_empty() {
        request.set(&["spec", "audiences"], json!([ISSUER]));
    }
    validate(&request)?;
    registry.admit("create", &call.path.name, &request)?;
    let now = call.now.as_second();
    let asked = request.i64_at(&["spec", "expirationSeconds"]);
    let expires = now + asked.unwrap_or(HOUR);
    let audiences: Vec<String> = request
        .list_at(&["spec", "audiences"])
        .iter()
        .filter_map(|audience| Some(audience.as_str()?.to_owned()))
        .collect();
    let mut claims = Claims {
        expires,
        issued: now,
        not_before: now,
        id: uuid::Uuid::new_v4().to_string(),
        namespace: call.namespace().to_owned(),
        account: Bound {
            name: call.path.name.clone(),
            uid: account.index.uid.to_string(),
        },
        ..Claims::default()
    };
    bind(call, &request, &mut claims)?;
    let for_the_api = audiences == [ISSUER];
    if asked == Some(EXTENDED_FOR) && for_the_api && claims.pod.is_some() {
        claims.warn_after = Some(expires);
        claims.expires = now + YEAR;
    }
    claims.audiences = audiences;
    let token = call.api.access.tokens().sign(&claims);
    let token = token.ok_or_else(|| Error::internal("a token could not be signed"))?;
    let expiration = jiff::Timestamp::from_second(expires).unwrap_or(call.now);
    request.set(
        &["status"],
        json!({ "token": token, "expirationTimestamp": time(expiration) }),
    );
    let bytes: Bytes = encode::finished(&request);
    let mut reply = call.format(StatusCode::CREATED, bytes, TOKEN_REQUEST)?;
    reply.warn(&warnings);
    Ok(reply)
}

/// Name and namespace are those of the path.
fn place(call: &Call<'_>, request: &mut Object) -> Result<(), Error> {
    for (key, wanted) in [("name", &*call.path.name), ("namespace", call.namespace())] {
        let said = request.str_at(&["metadata", key]).unwrap_or_default();
        if !said.is_empty() && said != wanted {
            return Err(Error::bad_request(format!(
                "metadata.{key} of the TokenRequest ({said}) does not match that of the service account ({wanted})"
            )));
        }
        request.set(&["metadata", key], wanted.into());
    }
    request.set(&["metadata", "creationTimestamp"], time(call.now).into());
    Ok(())
}

fn validate(request: &Object) -> Result<(), Error> {
    let seconds = request
        .i64_at(&["spec", "expirationSeconds"])
        .unwrap_or(HOUR);
    let why = if seconds < 600 {
        "may not specify a duration less than 10 minutes"
    } else if seconds > LONGEST {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let cause = Cause::invalid("spec.expirationSeconds", &seconds.into(), why);
    Err(Error::invalid(
        "authentication.k8s.io",
        "TokenRequest",
        "",
        vec![cause],
    ))
}

/// Takes down what `spec.boundObjectRef` names, which must be there.
fn bind(call: &Call<'_>, request: &Object, claims: &mut Claims) -> Result<(), Error> {
    let Some(reference) = request
        .at(&["spec", "boundObjectRef"])
        .filter(|reference| reference.is_object())
    else {
        return Ok(());
    };
    let text = |key: &str| reference[key].as_str().unwrap_or_default();
    let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
    let (plural, namespace) = match (text("apiVersion"), kind) {
        ("v1", "Pod") => ("pods", call.namespace()),
        ("v1", "Secret") => ("secrets", call.namespace()),
        ("v1", "Node") => ("nodes", ""),
        (version, kind) => {
            let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
            return Err(Error::bad_request(format!(
                "cannot bind token to object of type {group}/{version}, Kind={kind}"
            )));
        }
    };
    let stored = call.api.cache.find(plural, namespace, name);
    let stored = stored.ok_or_else(|| Error::not_found("", plural, name))?;
    let found = &*stored.index.uid;
    if !uid.is_empty() && uid != found {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Error::conflict("", plural, name, &why));
    }
    let bound = Bound {
        name: name.to_owned(),
        uid: found.to_owned(),
    };
    match plural {
        "pods" => {
            let pod: Value = serde_json::from_slice(&stored.bytes).unwrap_or_default();
            if pod["spec"]["serviceAccountName"] != *call.path.name {
                return Err(Error::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    call.path.name
                )));
            }
            claims.pod = Some(bound);
            if let Some(node) = pod["spec"]["nodeName"]
                .as_str()
                .filter(|node| !node.is_empty())
            {
                let known = call.api.cache.find("nodes", "", node);
                claims.node = Some(Bound {
                    name: node.to_owned(),
                    uid: known.map_or_else(String::new, |known| known.index.uid.to_string()),
                });
            }
        }
        "secrets" => claims.secret = Some(bound),
        _ => claims.node = Some(bound),
    }
    Ok(())
}
