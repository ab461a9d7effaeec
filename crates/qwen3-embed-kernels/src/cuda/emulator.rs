//! Runs launches on the CPU, with the kernels compiled as a C++ program: see `kernels/emulator.cpp`.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::Launch;
use super::tests::{Buffer, Runner};

/// Runs each launch in a process of its own.
pub(super) struct Emulator {
    program: &'static Path,
    /// Whether the threads of a block run from the last to the first.
    is_reversed: bool,
}

impl Emulator {
    /// Two emulators, which run the threads of a block in opposite orders. Without a C++ compiler, prints a message and
    /// returns no emulator.
    pub(super) fn both() -> Vec<Self> {
        static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
        let Some(program) = PROGRAM.get_or_init(build) else {
            // Unlike the output of `eprintln!`, this is not captured by the test harness.
            let message =
                "NOT RUN: the CUDA kernels on the emulator, which needs Linux and a C++ compiler\n";
            io::stderr().write_all(message.as_bytes()).unwrap();
            return Vec::new();
        };
        [false, true].map(|is_reversed| Self { program, is_reversed }).into()
    }
}

/// Compiles the program. `None` without a compiler, or on systems that the program does not support.
fn build() -> Option<PathBuf> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    // Compiled under a unique name and renamed, because another run of the tests may do the same.
    let folder = Path::new(env!("OUT_DIR"));
    let (new, program) =
        (folder.join(format!("emulator-{}", std::process::id())), folder.join("emulator"));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cuda/kernels/emulator.cpp");
    let named = std::env::var("CXX").ok();
    let compilers = named.iter().map(String::as_str).chain(["c++", "g++", "clang++"]);
    for compiler in compilers {
        let mut command = Command::new(compiler);
        // Some systems check that jumps stay on one stack, but the emulator jumps between stacks.
        let command = command.args(["-std=c++17", "-O2", "-U_FORTIFY_SOURCE"]);
        // As on a GPU, multiply-adds are rounded once, if this CPU has such instructions.
        if cfg!(target_arch = "x86_64") {
            command.args(["-march=native", "-ffp-contract=fast"]);
        }
        match command.arg("-o").arg(&new).arg(source).output() {
            Ok(output) if output.status.success() => {
                std::fs::rename(new, &program).unwrap();
                return Some(program);
            }
            Ok(output) => panic!("{compiler}: {}", String::from_utf8_lossy(&output.stderr)),
            Err(_) => {}
        }
    }
    None
}

impl Runner for Emulator {
    fn run(&self, launch: &Launch, buffers: &mut [Buffer]) {
        let mut request = launch.name().into_bytes();
        request.push(0);
        let mut put = |value: u32| request.extend(value.to_ne_bytes());
        launch.grid.into_iter().for_each(&mut put);
        put(launch.block);
        put(buffers.len() as u32);
        for buffer in buffers.iter() {
            let bytes = buffer.bytes();
            request.extend((bytes.len() as u64).to_ne_bytes());
            request.extend(bytes);
        }
        let numbers = launch.numbers.iter().map(|number| number.to_ne_bytes());
        request.extend((launch.numbers.len() as u32).to_ne_bytes());
        request.extend(numbers.flatten());
        request.extend((launch.floats.len() as u32).to_ne_bytes());
        request.extend(launch.floats.iter().flat_map(|float| float.to_ne_bytes()));

        let mut command = Command::new(self.program);
        if self.is_reversed {
            command.env("EMULATOR_REVERSED", "1");
        }
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it was built");
        // The process reads the whole request before it writes its output, so the pipes cannot block each other.
        process.stdin.take().unwrap().write_all(&request).unwrap();
        let mut answer = Vec::new();
        process.stdout.take().unwrap().read_to_end(&mut answer).unwrap();
        assert!(process.wait().unwrap().success(), "{launch:?} failed on the emulator");
        let mut rest = answer.as_slice();
        for buffer in buffers {
            let (bytes, behind) = rest.split_at(buffer.bytes().len());
            *buffer = buffer.with_bytes(bytes);
            rest = behind;
        }
        assert!(rest.is_empty());
    }
}
