//! `coracle server`: the API server, the scheduler and the controllers in one process, and no node. Starts and stops them
//! in order and owns nothing else.

use std::process::ExitCode;

use anyhow::Result;

use crate::progress::{self, Progress};
use crate::signals::{cut_off, interrupted, uninterrupted};
use crate::{clients, data_dir};

#[derive(clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) api: api::Args,
    #[command(flatten)]
    scheduler: scheduler::Args,
}

/// Runs the control plane until Ctrl-C or SIGTERM.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let progress = Progress::new();
    let data_dir = match &args.api.data_dir {
        Some(dir) => dir.clone(),
        None => data_dir::default_path()?,
    };
    let data_dir = data_dir::make(&data_dir)?;
    let config = api::Config {
        node_ranges: Some(api::NodeRanges {
            within: args.scheduler.cluster_cidr,
            prefix: args.scheduler.node_cidr_mask_size,
        }),
        ..args.api.into_config(data_dir)
    };
    let starting = api::start(config);
    let Some(api) = uninterrupted(starting).await else {
        return Ok(cut_off());
    };
    let api = api?;
    progress.say(&format!(
        "Kubernetes API at {}, listening on {}",
        api.url(),
        api.local_addr()
    ));
    let identity = format!("{}_{}", host::machine_name(), uuid::Uuid::new_v4());
    let config = clients::scheduler(&api, Some(identity.clone()), args.scheduler);
    let scheduler = scheduler::start(config);
    progress.say(&format!("scheduler and controllers run as {identity}"));
    say_what_next(&api);
    progress.say("running; Ctrl-C or SIGTERM drains and stops");
    interrupted().await;
    progress.say("stopping; Ctrl-C again stops at once");
    let stopping = async {
        scheduler.shutdown().await;
        api.shutdown().await;
    };
    if uninterrupted(stopping).await.is_none() {
        return Ok(cut_off());
    }
    progress.say("stopped");
    Ok(ExitCode::SUCCESS)
}

/// How to use the cluster, and how to join a node to it.
fn say_what_next(api: &api::Handle) {
    let kubeconfig =
        std::path::absolute(api.kubeconfig()).unwrap_or_else(|_| api.kubeconfig().to_owned());
    let kubeconfig = kubeconfig.display();
    progress::print(&format!("export KUBECONFIG={kubeconfig}"));
    progress::print("# to join a node: make a token here, and use it there within a day");
    progress::print(&format!(
        "coracle token create --kubeconfig {kubeconfig} --print-join-command"
    ));
    progress::print(&format!(
        "coracle node --server https://{} --token TOKEN",
        api.advertised()
    ));
}
