//! `animctl`, the client of animd's bus interface.

use std::process::ExitCode;

fn main() -> ExitCode {
    animctl::main()
}
