//! Whether a new passphrase is worth the name. Whoever reads the bucket can try passphrases on a
//! copy of the keyring at home, for years.

use clap::Args;
use zxcvbn::{Score, zxcvbn};

use crate::seal::Secret;

use super::exit::{Exit, Failure, Outcome};

const HINT: &str = "take five random words, or a key file: head -c 32 /dev/urandom > volume.key, \
                    then --key-file volume.key";

/// The flag that takes one all the same.
#[derive(Args, Clone, Debug)]
pub struct WeakArgs {
    /// Take a new passphrase that is easy to guess
    #[arg(long)]
    weak_passphrase: bool,
}

impl WeakArgs {
    /// Refuses a new passphrase that is easy to guess, unless told, and warns of one that can be.
    pub fn check(&self, new: &Secret) -> Outcome {
        check(new, self.weak_passphrase)
    }
}

/// Refuses a passphrase that would be guessed in less than a thousand tries, unless that is
/// `allowed`, and warns of one below a hundred million (at the cost of one try, a tenth of a second
/// or so, months of one machine). Key files are not guessed.
fn check(secret: &Secret, allowed: bool) -> Outcome {
    let Secret::Passphrase(bytes) = secret else { return Ok(()) };
    let estimate = zxcvbn(&String::from_utf8_lossy(bytes), &["sealfs", "s3"]);
    let tries = format!("in about {} tries", tries(estimate.guesses()));
    match estimate.score() {
        Score::Zero if !allowed => {
            let what = format!("the passphrase is too easy to guess: {tries}");
            let hint = format!("{HINT}; to use it all the same: --weak-passphrase");
            return Err(Failure::new(Exit::Usage, what).hint(hint));
        }
        Score::Zero | Score::One | Score::Two => {
            eprintln!("sealfs: warning: the passphrase can be guessed {tries}");
            eprintln!("hint: {HINT}");
        }
        _ => {}
    }
    Ok(())
}

/// A number of which only the size matters.
fn tries(n: u64) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{} thousand", n / 1_000),
        _ => format!("{} million", n / 1_000_000),
    }
}
