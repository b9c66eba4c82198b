//! The binary `logits`: evaluate, check and time from the shell. A client of the library's public API.

// They panic where standard output or error is full or closed; `stdio` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod batches;
mod bench;
mod check;
mod info;
mod loss;
mod npy;
mod output;
mod plot;
mod stdio;
mod tune;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{NonEmptyStringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use logits::{Device, DeviceChoice, Error};

#[derive(Parser)]
#[command(version, about = "Softmax and cross-entropy of batched logits, on any GPU and on the CPU")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The devices of this machine, which one is used, and why
    Info {
        /// Print one JSON object on one line
        #[arg(long)]
        json: bool,
    },
    /// Run a battery of shapes and values against float64; exit code 1 if anything is out of bounds
    Check {
        #[command(flatten)]
        common: Common,
    },
    /// The loss of logits and targets in .npy files
    Loss(loss::Options),
    /// Time operations, in units of a plain copy of the logits on the same device
    Bench(bench::Options),
    /// Look for the kernel sizes that are fastest on a GPU, and write them to a file for --tuning
    Tune(tune::Options),
}

#[derive(clap::Args)]
struct Common {
    /// auto, cpu, gpu (the best adapter of any kind), or part of an adapter's name, with vulkan: or gl: before it if needed
    #[arg(long, default_value = "auto", value_parser = NonEmptyStringValueParser::new().try_map(|name| name.parse::<DeviceChoice>()))]
    device: DeviceChoice,
    /// Shape the GPU's kernels by this file of `logits tune`
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

/// Whatever ends a command early; printed as one line, with exit code 2.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("{0}")]
    Logits(#[from] logits::Error),
    #[error("{}: {reason}", stdio::without_middle(&path.display().to_string(), 120))]
    File { path: PathBuf, reason: String },
    #[error("{0}")]
    Usage(String),
    /// Whoever read standard output has gone, and is told nothing.
    #[error("standard output is closed")]
    ClosedPipe,
}

impl CliError {
    fn file(path: &Path, reason: impl ToString) -> Self {
        Self::File { path: path.to_owned(), reason: reason.to_string() }
    }
}

fn main() -> ExitCode {
    quiet_mesa();
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            if !matches!(error, CliError::ClosedPipe) {
                stdio::report(&error.to_string());
            }
            ExitCode::from(2)
        }
    }
}

/// Whether all that was checked is within its bounds.
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
        // The first lines say what is wrong.
        Err(error) => {
            let text = error.to_string();
            let line: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
            return Err(CliError::Usage(line.join(" ").trim_start_matches("error: ").to_owned()));
        }
    };
    match arguments.command {
        Command::Info { json } => info::run(json).map(|()| true),
        Command::Check { common } => common.open().and_then(|device| check::run(&device, common.json)),
        Command::Loss(options) => loss::run(&options).map(|()| true),
        Command::Bench(options) => bench::run(&options).map(|()| true),
        Command::Tune(options) => tune::run(&options).map(|()| true),
    }
}

/// Mesa's device-select layer writes to stderr where there is no session to select a device for; other tools read ours.
fn quiet_mesa() {
    #[cfg(unix)]
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: the first thing that main does; there is no other thread yet that could read the environment.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// 17 digits, or the name of what is no number: JSON has none for it.
fn json_number(value: f64) -> serde_json::Value {
    if value.is_nan() {
        "NaN".into()
    } else if value.is_infinite() {
        if value > 0.0 { "inf".into() } else { "-inf".into() }
    } else {
        format!("{value:.16e}").parse().map_or(serde_json::Value::Null, serde_json::Value::Number)
    }
}

/// A bar on a terminal, nothing in a pipe.
fn progress(length: u64, unit: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(&format!("{{wide_bar}} {{human_pos}}/{{human_len}} {unit} {{eta}}"));
    ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Changes the length of `values`; what is new is 0.
pub(crate) fn resize<T: Clone + Default>(values: &mut Vec<T>, what: &'static str, length: usize) -> Result<(), Error> {
    let bytes = length.saturating_mul(size_of::<T>());
    let refused = |_| Error::OutOfMemory { what, bytes };
    values.try_reserve_exact(length.saturating_sub(values.len())).map_err(refused)?;
    values.resize(length, T::default());
    Ok(())
}
