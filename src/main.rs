//! The one binary: parse → logging → run one role → exit code. Nothing is decided here.

mod clients;
mod data_dir;
mod node;
mod progress;
mod server;
mod signals;
mod token;
mod up;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

/// The API works on trees of small objects: with the C library's allocator half of the processor time of a start of 1,000
/// pods was spent allocating; with this one it is less than half in all, and the process is no larger.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A Kubernetes cluster in one binary whose pods are WebAssembly components.
#[derive(Parser)]
#[command(name = "coracle", version, arg_required_else_help = true)]
struct Cli {
    /// What to log on standard error: `warn`, `info`, `debug`, or per part, `info,host=debug`.
    #[arg(
        long,
        global = true,
        env = "CORACLE_LOG",
        default_value = "warn",
        value_name = "FILTER"
    )]
    log: String,
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Run a whole cluster in this process, apply manifests to it, and stop it with Ctrl-C.
    Up(Box<up::Args>),
    /// Run the control plane: the API, the scheduler and the controllers. Nodes join it with `coracle node`.
    Server(Box<server::Args>),
    /// Join this machine to a cluster, as a node that runs pods.
    Node(Box<node::Args>),
    /// Make, list and delete the tokens with which machines join.
    Token(token::Args),
}

/// The command line. `server` and `node` are for other hosts to reach, `up` for this one: only their defaults differ.
fn command() -> clap::Command {
    let command = Cli::command();
    let command = command.mut_subcommand("server", |server| {
        server.mut_arg("listen", |listen| listen.default_value("0.0.0.0:6443"))
    });
    command.mut_subcommand("node", |node| {
        node.mut_arg("service_address", |at| at.default_value("0.0.0.0"))
    })
}

fn main() -> ExitCode {
    let cli = match Cli::from_arg_matches(&command().get_matches()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    if let Err(error) = start_logging(&cli.log) {
        return fail(&error);
    }
    // Two providers of cryptography would leave rustls without a default one; ours is ring, everywhere.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        return fail(&anyhow::anyhow!(
            "another TLS provider was installed before ours"
        ));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            return fail(&anyhow::Error::new(error).context("could not start the async runtime"));
        }
    };
    let code = match cli.role {
        Role::Up(args) => runtime.block_on(Box::pin(up::run(*args))),
        Role::Server(args) => runtime.block_on(Box::pin(server::run(*args))),
        Role::Node(args) => runtime.block_on(Box::pin(node::run(*args))),
        Role::Token(args) => runtime.block_on(Box::pin(token::run(args))),
    };
    // Whatever blocking work is left (a compile, say) must not hold the exit.
    runtime.shutdown_background();
    code.unwrap_or_else(|error| fail(&error))
}

fn start_logging(filter: &str) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .map_err(|error| anyhow::anyhow!("--log {filter:?} is no filter: {error}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    Ok(())
}

/// One line that says what failed and why.
fn fail(error: &anyhow::Error) -> ExitCode {
    use std::io::Write as _;
    let _ = writeln!(
        std::io::stderr(),
        "coracle: {}",
        types::error::chain(error.as_ref())
    );
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_a_server_listens_for_other_hosts() {
        command().debug_assert();
        let listen = |line: &[&str]| {
            let matches = command().try_get_matches_from(line).expect("well formed");
            match Cli::from_arg_matches(&matches).expect("well formed").role {
                Role::Up(args) => args.api.listen,
                Role::Server(args) => args.api.listen,
                Role::Node(_) | Role::Token(_) => panic!("it listens for nobody"),
            }
        };
        assert_eq!(listen(&["coracle", "up"]).to_string(), "127.0.0.1:6443");
        assert_eq!(listen(&["coracle", "server"]).to_string(), "0.0.0.0:6443");
    }
}
