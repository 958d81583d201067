//! GatewayClasses and Gateways that are ours, in the order of their age, with the routes that attach to them.

use std::sync::Arc;

use super::gateway_api::Gateway;
use super::listener::{self, Ours};
use super::status::{ClassStatus, Fact};
use super::{Compiled, Doors, World, route};
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
    let is_ours = |gateway: &&Arc<Gateway>| {
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
        let listeners = listener::bind(world, gateway, doors, &mut out.secrets);
        ours.push(Ours { gateway, listeners });
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
