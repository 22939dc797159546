//! How one host of a lab is launched.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// What `launch` is given on a host, besides what the test itself says.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Options {
    args: Vec<String>,
    env: Vec<(String, String)>,
    without_bpf: bool,
}

impl Options {
    /// Nothing out of the ordinary.
    pub fn new() -> Self {
        Self::default()
    }

    /// `WEAVE_PASSWORD`.
    pub fn password(self, password: &str) -> Self {
        self.env("WEAVE_PASSWORD", password)
    }

    /// `--trusted-subnets`, comma separated.
    pub fn trusted_subnets(self, subnets: &str) -> Self {
        self.arg(&format!("--trusted-subnets={subnets}"))
    }

    /// `--no-fastdp`.
    pub fn no_fastdp(self) -> Self {
        self.arg("--no-fastdp")
    }

    /// One more argument.
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// One more variable of the environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The daemon may do all that root may, but for the system call `bpf`: it fails with EPERM, as
    /// under the usual seccomp profile of containers.
    pub fn without_bpf(self) -> Self {
        Self {
            without_bpf: true,
            ..self
        }
    }

    pub(super) fn apply(&self, command: &mut Command) {
        command.args(&self.args);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if self.without_bpf {
            // SAFETY: between fork and exec only the prctl system call is made.
            unsafe { command.pre_exec(refuse_bpf) };
        }
    }
}

/// Makes `bpf` fail with EPERM in this process and all it starts.
fn refuse_bpf() -> io::Result<()> {
    let instruction = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    // The number of the call is the first word of seccomp_data.
    let mut filter = [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            libc::SYS_bpf as u32,
        ),
        instruction(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: `program` and the filter it points to live until the call returns; the kernel copies them.
    let result = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER as libc::c_ulong,
            &raw const program,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
