use crate::error::Result;
pub fn unified() -> bool { todo!() }
pub fn remove(_: &str) -> Result<()> { todo!() }
