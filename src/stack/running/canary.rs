//! The probe at `init` and `mount`, and what its refusal means.
//!
//! The probe's first PUT carries the volume's encryption: a canary. Where the server refuses it,
//! a few more requests find out which setting is in the way.

use crate::stack::{Layers, StackError, StackErrorKind};
use crate::store::{ErrorClass, ProbeError, class, probe, sentence};

/// Tries out what a volume needs of its store, in the mode that it will be written in.
///
/// # Errors
/// [`StackError::Unsuitable`]; [`StackError::Encryption`] where the mode is what was refused.
pub async fn probe_store(layers: &Layers) -> Result<(), StackError> {
    let error = match probe(&*layers.retry).await {
        Ok(()) => return Ok(()),
        Err(e) => e,
    };
    if let (Some(s3), ProbeError::Failed { what, source }) = (&layers.s3, &error)
        && matches!(class(source), ErrorClass::Auth | ErrorClass::Unsupported | ErrorClass::Other)
        && let Some(diagnosis) = s3.why_refused().await
    {
        let said = sentence(source);
        return Err(StackError::Encryption {
            kind: StackErrorKind::Unsuitable,
            message: format!("cannot {what} in the store: {said}; {}", diagnosis.why),
            hint: diagnosis.next,
        });
    }
    Err(error.into())
}
