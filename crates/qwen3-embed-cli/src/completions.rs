use std::io::{self, Write};

use anyhow::Result;
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::usage::usage_error;

/// Print the completions of commands and flags for a shell
#[derive(clap::Args)]
pub(crate) struct CompletionsArgs {
    /// Name of the shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Print a manual page, in the format of man
#[derive(clap::Args)]
pub(crate) struct ManArgs {
    /// Command that the page is about, such as embed [default: the whole program]
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
}

/// Runs `qwen3-embed completions`. `program` describes all commands.
pub(crate) fn run(args: &CompletionsArgs, mut program: Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, "qwen3-embed", &mut script);
    Ok(io::stdout().write_all(&script)?)
}

/// Runs `qwen3-embed man`. `program` describes all commands.
pub(crate) fn run_man(args: &ManArgs, mut program: Command) -> Result<()> {
    // After this call, the names of the subcommands begin with the name of the program.
    program.build();
    let command = match &args.command {
        None => program,
        Some(name) => match program.find_subcommand(name) {
            Some(command) => command.clone(),
            None => return Err(usage_error(format!("there is no command `{name}`"))),
        },
    };
    let mut page = Vec::new();
    Man::new(command).render(&mut page)?;
    Ok(io::stdout().write_all(&page)?)
}
