//! The binary `logits`: evaluate, check and time from the shell. A client of the library's public
//! API, and of its hidden items for benchmarks (`Stopwatch`) and for the mean over a streamed file.

// print! and eprint! panic where standard output or error is full or closed; `stdio` returns an
// error.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod check;
mod info;
mod loss;
mod memory;
mod npy;
mod output;
mod stdio;
mod tune;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{NonEmptyStringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use logits::{Device, DeviceChoice};

#[derive(Parser)]
#[command(
    version,
    about = "Softmax and cross-entropy of batched logits, on any GPU and on the CPU"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the devices of this machine, which one is used, and why; measures them for some
    /// seconds. With --plan, print which kernel runs a shape instead
    Info(info::Options),
    /// Compare a battery of shapes and values with float64; exit code 1 if anything is out of
    /// bounds, 2 after an error
    Check {
        #[command(flatten)]
        common: Common,
    },
    /// Compute the cross-entropy of logits and targets in .npy files, and on request gradients and
    /// probabilities
    Loss(loss::Options),
    /// Time operations, in units of a plain copy of the logits on the same device
    Bench(bench::Options),
    /// Look for the kernel sizes that are fastest on a GPU, and write them to a file for --tuning
    Tune(tune::Options),
}

#[derive(clap::Args)]
struct Common {
    /// auto, cpu, gpu (the best adapter of any kind), or part of an adapter's name, with vulkan: or
    /// gl: before it if needed
    #[arg(long, default_value = "auto", value_parser = NonEmptyStringValueParser::new().try_map(|name| name.parse::<DeviceChoice>()))]
    device: DeviceChoice,
    /// Use the kernel sizes that `logits tune` wrote to this file
    #[arg(long)]
    tuning: Option<PathBuf>,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

impl Common {
    /// The tuning file, which no output may replace.
    fn inputs(&self) -> Vec<&Path> {
        self.tuning.as_deref().into_iter().collect()
    }

    fn open(&self) -> Result<Device, CliError> {
        let device = Device::open(&self.device)?;
        Ok(match &self.tuning {
            Some(path) => device.with_tuning_file(path)?,
            None => device,
        })
    }
}

/// The error that ends a command with exit code 2, in one line on standard error.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Logits(#[from] logits::Error),
    #[error("{}: {reason}", stdio::without_middle(&path.display().to_string(), 120))]
    File { path: PathBuf, reason: String },
    #[error("{0}")]
    Usage(String),
    /// Standard output is closed. It is not reported if no output file is lost.
    #[error("standard output is closed; no file was written")]
    ClosedPipe,
}

impl CliError {
    fn file(path: &Path, reason: impl ToString) -> Self {
        Self::File { path: path.to_owned(), reason: reason.to_string() }
    }
}

fn main() -> ExitCode {
    quiet_mesa();
    output::survive_size_limit();
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            if !matches!(error, CliError::ClosedPipe) || output::are_unfinished() {
                stdio::report(&error.to_string());
            }
            ExitCode::from(2)
        }
    }
}

/// Runs the command. Returns false where `check` found a result out of bounds.
fn run() -> Result<bool, CliError> {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // Help and version are no errors.
        Err(error) if !error.use_stderr() => {
            stdio::print(error.to_string().trim_end())?;
            return Ok(true);
        }
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let commands = "a command is needed: info, check, loss, bench or tune; see --help";
            return Err(CliError::Usage(commands.to_owned()));
        }
        // The first lines say what is wrong, and a line that starts with "tip:" what may have been
        // meant.
        Err(error) => {
            let text = error.to_string();
            let mut lines = text.lines().map(str::trim);
            let wrong: Vec<&str> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
            let tips = lines.filter(|line| line.starts_with("tip:")).map(|tip| format!("; {tip}"));
            let line = wrong.join(" ") + &tips.collect::<String>() + "; see --help";
            return Err(CliError::Usage(line.trim_start_matches("error: ").to_owned()));
        }
    };
    match arguments.command {
        Command::Info(options) => info::run(&options).map(|()| true),
        Command::Check { common } => {
            common.open().and_then(|device| check::run(&device, common.json))
        }
        Command::Loss(options) => loss::run(&options).map(|()| true),
        Command::Bench(options) => bench::run(&options).map(|()| true),
        Command::Tune(options) => tune::run(&options).map(|()| true),
    }
}

/// Mesa's device-select layer writes to stderr if there is no session to select a device for; other
/// tools read our stderr.
fn quiet_mesa() {
    #[cfg(unix)]
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: main does this first, so no other thread reads the environment.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}
