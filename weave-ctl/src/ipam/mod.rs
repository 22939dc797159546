//! IP address allocation (`spec/control.md` section 1). Pure.

pub mod address;
