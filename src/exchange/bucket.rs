//! The other side: a bucket, or what lies below a prefix of it, asked patiently.

use std::future::Future;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

use super::report::{ExchangeError, Run, Trouble};
use crate::store::s3::{About, Body, Listed, S3Store};
use crate::store::{ErrorClass, Patience, class, patiently_while};

const PATIENCE: Patience = Patience {
    attempts_max: 7,
    pause: Duration::from_millis(200),
    pause_max: Duration::from_secs(5),
};

/// `s3://BUCKET[/PREFIX]`, whatever keys there are below: unlike the address of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketPath {
    /// The bucket.
    pub bucket: String,
    /// Empty, or ends with a slash: a prefix is a directory.
    pub prefix: String,
}

impl FromStr for BucketPath {
    type Err = String;

    fn from_str(text: &str) -> Result<BucketPath, String> {
        let hint = "\nhint: s3://BUCKET[/PREFIX]";
        let rest = text.strip_prefix("s3://").ok_or(format!("{text:?} is no bucket{hint}"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let usual = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if bucket.len() < 3 || bucket.len() > 255 || !bucket.chars().all(usual) {
            return Err(format!("{bucket:?} is not a bucket name{hint}"));
        }
        let prefix = match prefix {
            "" => String::new(),
            p if p.ends_with('/') => p.to_owned(),
            p => format!("{p}/"),
        };
        Ok(BucketPath { bucket: bucket.to_owned(), prefix })
    }
}

/// A bucket that is reached. Clones share the connections.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// The connection; its own prefix is empty.
    pub store: S3Store,
    /// Empty, or ends with a slash.
    pub prefix: String,
}

impl Bucket {
    /// Every object below the prefix, in the order of keys. About 200 bytes of memory each.
    ///
    /// # Errors
    /// Those of the listing.
    pub async fn list(&self, run: &Run) -> Result<Vec<Listed>, ExchangeError> {
        let (mut all, mut token) = (Vec::new(), None);
        loop {
            let ask = || self.store.list_keys(&self.prefix, token.clone());
            let (page, next) = patiently(run, ask).await.map_err(ExchangeError::Store)?;
            all.extend(page);
            if run.is_stopped() {
                return Err(ExchangeError::Stopped);
            }
            token = next;
            if token.is_none() {
                break;
            }
        }
        // Directory buckets list in no order.
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all.dedup_by(|a, b| a.key == b.key);
        Ok(all)
    }

    /// Refuses a prefix at, above or inside of a sealfs volume: its objects are sealed pieces of files,
    /// and none of them may be written over or deleted.
    ///
    /// # Errors
    /// [`ExchangeError::Refused`].
    pub async fn refuse_volume(&self, run: &Run, listed: &[Listed]) -> Result<(), ExchangeError> {
        let refused = |at: &str| {
            Err(ExchangeError::Refused(format!(
                "a sealfs volume lies at s3://{}/{at}\nhint: mount it to read and write its files; \
                 name another prefix here",
                self.store.bucket()
            )))
        };
        let has = |key: String| listed.binary_search_by(|l| l.key.cmp(&key)).is_ok();
        let rings = listed.iter().filter_map(|l| l.key.strip_suffix("keyring"));
        for at in rings.filter(|at| at.is_empty() || at.ends_with('/')) {
            if has(format!("{at}lease")) && has(format!("{at}config")) {
                return refused(at);
            }
        }
        let mut above = self.prefix.trim_end_matches('/');
        while let Some((parent, _)) =
            above.rsplit_once('/').or((!above.is_empty()).then_some(("", "")))
        {
            let at = if parent.is_empty() { String::new() } else { format!("{parent}/") };
            let mut found = true;
            for name in ["keyring", "lease"] {
                let key = format!("{at}{name}");
                match patiently(run, || self.store.about(&key)).await {
                    Ok(_) => {}
                    // Whoever may not look above has no volume there that could be hurt.
                    Err(_) => found = false,
                }
                if !found {
                    break;
                }
            }
            if found {
                return refused(&at);
            }
            above = parent;
        }
        Ok(())
    }

    /// The key without the prefix.
    pub fn below<'a>(&self, key: &'a str) -> &'a str {
        key.strip_prefix(&self.prefix).unwrap_or(key)
    }

    /// HeadObject.
    ///
    /// # Errors
    /// As the request's.
    pub async fn about(&self, run: &Run, key: &str) -> Result<About, Trouble> {
        Ok(patiently(run, || self.store.about(key)).await?)
    }

    /// The same; `None`: there is no such object.
    ///
    /// # Errors
    /// As the request's.
    pub async fn about_if_there(&self, run: &Run, key: &str) -> Result<Option<About>, Trouble> {
        match patiently(run, || self.store.about(key)).await {
            Ok(about) => Ok(Some(about)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The start of a GetObject.
    ///
    /// # Errors
    /// As the request's.
    pub async fn fetch(
        &self,
        run: &Run,
        key: &str,
        range: Option<Range<u64>>,
        e_tag: Option<&str>,
    ) -> Result<(About, Body), Trouble> {
        Ok(patiently(run, || self.store.fetch(key, range.clone(), e_tag)).await?)
    }

    /// Whether what ends a run is only about one object: some answers that come from in front of a store (a page
    /// in its place) are about one key alone, which then fails, and the others go on. Shown by a listing.
    ///
    /// # Errors
    /// `e`, if the store does not answer at all.
    pub async fn only_of_one(&self, run: &Run, e: ExchangeError) -> Result<String, ExchangeError> {
        match &e {
            ExchangeError::Store(cause) if class(cause) == ErrorClass::Foreign => {
                match patiently(run, || self.store.list_keys(&self.prefix, None)).await {
                    Ok(_) => Ok(e.to_string().replace("\nhint: ", "; ")),
                    Err(_) => Err(e),
                }
            }
            _ => Err(e),
        }
    }

    /// Deletes up to a thousand objects; those that could not be, and why. Asks again for what the store
    /// was too busy for.
    pub async fn remove(&self, run: &Run, keys: &[String]) -> Vec<(String, object_store::Error)> {
        let (mut left, mut failed, mut pause) = (keys.to_vec(), Vec::new(), PATIENCE.pause);
        for attempt in 1..=PATIENCE.attempts_max {
            let is_last = attempt == PATIENCE.attempts_max || run.is_stopped();
            let refused = self.store.remove_keys(&left).await.into_iter();
            let (again, over): (Vec<_>, Vec<_>) =
                refused.partition(|(_, e)| class(e).is_retryable() && !is_last);
            failed.extend(over);
            left = again.into_iter().map(|(key, _)| key).collect();
            if left.is_empty() {
                break;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PATIENCE.pause_max);
        }
        failed
    }
}

/// Asks again while the store is busy or away, a bounded number of times, until the run is stopped.
pub async fn patiently<T, F>(run: &Run, ask: impl Fn() -> F) -> object_store::Result<T>
where
    F: Future<Output = object_store::Result<T>>,
{
    patiently_while(&PATIENCE, || !run.is_stopped(), ask).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_directory_and_may_be_odd() {
        // Guards against `photos` taking `photos-old` along, and against keys that no volume has.
        let parsed = |text: &str| text.parse::<BucketPath>().map(|path| path.prefix);
        assert_eq!(parsed("s3://bucket"), Ok(String::new()));
        assert_eq!(parsed("s3://bucket/"), Ok(String::new()));
        assert_eq!(parsed("s3://bucket/photos"), Ok("photos/".into()));
        assert_eq!(parsed("s3://Old_Bucket/a//b/"), Ok("a//b/".into()));
        for bad in ["bucket", "s3://", "s3:///x", "s3://a b/x", "file:///x"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
