//! Signals while we wait. The kernel gives the first process of a container only those signals that it has asked
//! for, so without this `docker stop` would take its full grace.

use std::ffi::c_int;

/// Ends the process with the usual status when it is told to end. The command starts with the defaults again, as
/// handlers do not outlive `execve`.
pub(crate) fn end_when_told() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
        // SAFETY: `sigaction` is plain data, for which zeros are valid; the handler does nothing that is not allowed
        // in one.
        unsafe {
            let mut old: libc::sigaction = std::mem::zeroed();
            let is_known = libc::sigaction(signal, std::ptr::null(), &raw mut old) == 0;
            // Who started us wants it ignored, and the command as well.
            if !is_known || old.sa_sigaction == libc::SIG_IGN {
                continue;
            }
            let mut new: libc::sigaction = std::mem::zeroed();
            new.sa_sigaction = end as *const () as libc::sighandler_t;
            libc::sigaction(signal, &raw const new, std::ptr::null_mut());
        }
    }
}

extern "C" fn end(signal: c_int) {
    // SAFETY: `_exit` may be called anywhere.
    unsafe { libc::_exit(128 + signal) }
}
