//! GatewayClasses and Gateways that are ours, in the order of their age, with the routes that attach to them.

use std::sync::Arc;

use super::gateway_api::Gateway;
use super::listener::{self, Ours};
use super::status::{ClassStatus, Fact};
use super::{Compiled, Doors, Problem, World, reason, route};
use crate::well_known::GATEWAY_CONTROLLER;

pub(super) fn compile(world: &World, doors: &mut Doors, out: &mut Compiled) {
    for class in &world.gateway_classes {
        if class.spec.controller_name != GATEWAY_CONTROLLER {
            continue;
        }
        let accepted = if class.spec.parameters_ref.is_some() {
            let message = "parametersRef is not supported".to_owned();
            Fact::new("Accepted", false, "InvalidParameters", message)
        } else {
            Fact::new("Accepted", true, "Accepted", String::new())
        };
        out.classes.push(ClassStatus {
            name: class.metadata.name.clone(),
            generation: class.metadata.generation,
            conditions: vec![accepted],
        });
    }
    let mut gateways: Vec<&Arc<Gateway>> = Vec::new();
    for gateway in &world.gateways {
        let class = &gateway.spec.gateway_class_name;
        let ours = out.classes.iter().find(|c| c.name == *class);
        let mut all = world.gateway_classes.iter();
        match ours {
            Some(class) if class.conditions[0].status => gateways.push(gateway),
            None if all.any(|c| c.metadata.name == *class) => {}
            _ => out.orphans.push(("Gateway", gateway.metadata.key())),
        }
    }
    gateways.sort_by_key(|gateway| gateway.metadata.age());
    let mut ours: Vec<Ours<'_>> = Vec::new();
    for gateway in gateways {
        let refused = refused(gateway);
        let serves = refused.is_none();
        let listeners = listener::bind(world, gateway, serves, doors, &mut out.secrets);
        tell(gateway, out);
        ours.push(Ours {
            gateway,
            refused,
            listeners,
        });
    }
    let mut routes: Vec<_> = world.routes.iter().collect();
    routes.sort_by_key(|route| route.metadata.age());
    for route in routes {
        let status = route::attach(world, route, &mut ours, doors, out);
        if !status.parents.is_empty() {
            out.routes.push(status);
        }
    }
    out.gateways.extend(ours.into_iter().map(Ours::status));
}

/// Why the Gateway is not served at all, if so.
fn refused(gateway: &Gateway) -> Option<Fact> {
    let infrastructure = gateway.spec.infrastructure.as_ref()?;
    let parameters = infrastructure.parameters_ref.as_ref()?;
    let message = format!(
        "infrastructure.parametersRef to {} {:?} is not supported",
        parameters.kind.as_deref().unwrap_or_default(),
        parameters.name
    );
    Some(Fact::new("Accepted", false, "InvalidParameters", message))
}

/// What changes nothing of what is served, and still has no effect.
fn tell(gateway: &Gateway, out: &mut Compiled) {
    let spec = &gateway.spec;
    let infrastructure = spec.infrastructure.as_ref();
    let marks = infrastructure.is_some_and(|i| !i.labels.is_empty() || !i.annotations.is_empty());
    let listeners = spec.allowed_listeners.as_ref();
    let from = listeners.and_then(|l| l.namespaces.as_ref()?.from.as_deref());
    let texts = [
        (
            marks,
            "infrastructure.labels and annotations have no effect: nothing is made for a Gateway that could bear them",
        ),
        (
            from.is_some_and(|from| from != "None"),
            "allowedListeners is not supported: no ListenerSets are served",
        ),
    ];
    for (_, text) in texts.iter().filter(|(is_so, _)| *is_so) {
        out.problems.push(Problem {
            kind: "Gateway",
            about: gateway.metadata.key(),
            reason: reason::UNSUPPORTED,
            message: (*text).to_owned(),
        });
    }
}
