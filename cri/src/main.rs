//! `conward-cri`: see conward-cri(8).

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use conward_cri::check::Wanted;
use conward_cri::config::{Config, LogFormat};
use conward_cri::error::{Context, Error, Result};
use conward_cri::{check, sandbox, serve};

/// A small Kubernetes CRI server that runs one conward monitor per container.
#[derive(Parser)]
#[command(version, about)]
struct Words {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve the CRI until SIGTERM; containers go on after that
    Serve(Options),
    /// Print the configuration that would be used, as TOML
    Config {
        #[command(flatten)]
        options: Options,
        /// The embedded defaults, whatever is configured
        #[arg(long)]
        default: bool,
    },
    /// Put an image into the store: a directory tree, or `busybox` for one made of this host's busybox
    Import {
        #[command(flatten)]
        options: Options,
        /// What to call it, such as localhost/demo:latest
        name: String,
        /// A directory, or the word busybox
        tree: PathBuf,
    },
    /// Run a pod through the socket of a server, to see that this host works
    Check {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        wanted: Wanted,
        /// Only remove a pod that was left
        #[arg(long, value_name = "POD", conflicts_with = "keep")]
        remove: Option<String>,
    },
    /// Print a completion script
    Completion { shell: clap_complete::Shell },
}

#[derive(Args)]
struct Options {
    /// Configuration instead of /etc/conward/cri.toml
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The CRI's socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// What survives a reboot: images, pods, containers
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// What does not: mounts, namespaces, bundles
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Registries that speak plain HTTP, in addition
    #[arg(long, value_name = "HOST")]
    insecure_registry: Vec<String>,
}

fn main() -> ExitCode {
    // A child that makes namespaces is this program, too; it has no options that are for people.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == sandbox::namespaces::WORD) {
        return sandbox::namespaces::main(words);
    }
    abort_on_panic();
    match run(Words::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("conward-cri: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Builds for tests unwind; they are to end as the release does, and not to go on without a part of themselves.
fn abort_on_panic() {
    if cfg!(panic = "unwind") {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            tell(panic);
            std::process::abort();
        }));
    }
}

fn run(words: Words) -> Result<()> {
    match words.verb {
        Verb::Serve(options) => {
            let config = options.load()?;
            log_to_stderr(&config)?;
            serve::run(config)
        }
        Verb::Config { default: true, .. } => print(&Config::default().to_toml()?),
        Verb::Config { options, .. } => print(&options.load()?.to_toml()?),
        Verb::Import { options, name, tree } => serve::import(&options.load()?, &name, &tree),
        Verb::Check { options, wanted, remove } => {
            let socket = options.load()?.socket;
            serve::call(async {
                match remove {
                    Some(pod) => check::remove(&socket, &pod).await,
                    None => match check::check(&socket, &wanted).await? {
                        pod if wanted.keep => print(&format!("{pod}\n")),
                        _ => Ok(()),
                    },
                }
            })
        }
        Verb::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Words::command(), "conward-cri", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    }
}

impl Options {
    fn load(self) -> Result<Config> {
        let mut config = Config::load(self.config.as_deref())?;
        // Monitors and runtimes are in other directories than we are.
        let place = |old: &mut PathBuf, new: Option<PathBuf>| {
            let path = new.unwrap_or_else(|| std::mem::take(old));
            *old = std::path::absolute(&path).context(|| format!("Bad path {:?}", path.display()))?;
            Ok(())
        };
        place(&mut config.socket, self.socket)?;
        place(&mut config.root, self.root)?;
        place(&mut config.run, self.run)?;
        config.log_level = self.log_level.unwrap_or(config.log_level);
        config.images.insecure_registries.extend(self.insecure_registry);
        Ok(config)
    }
}

fn print(text: &str) -> Result<()> {
    use std::io::Write;
    std::io::stdout().write_all(text.as_bytes()).context(|| "Failed to write to stdout")
}

fn log_to_stderr(config: &Config) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log_level)
        .map_err(|error| Error::invalid(format!("Bad log_level {}: {error}", config.log_level)))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match config.log_format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
