//! Which stored values are sealed anew at start, and what for: those that are not sealed with the first key, because there
//! was no key when they were written, or another. Decides value by value; each store does its own reading and writing.
//!
//! Without this, turning encryption on would protect only what somebody happens to write afterwards (an update that
//! changes nothing is not written), and a key that is taken out could be missed by an object nobody touched for a year.

use std::collections::BTreeMap;

use super::seal::{self, Sealer};
use super::{Error, Key};

/// What was found, by what it was sealed with before.
#[derive(Debug, Default)]
pub(super) struct Tally {
    plain: u64,
    /// By the key's name.
    sealed: BTreeMap<String, u64>,
}

// === impl Tally ===

impl Tally {
    /// `value` sealed with the first key; `None` where it is already.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn anew(
        &mut self,
        sealer: &Sealer,
        key: &Key,
        value: Option<Vec<u8>>,
    ) -> Result<Option<Vec<u8>>, Error> {
        let Some(value) = value.filter(|value| sealer.is_due(key, value)) else {
            return Ok(None);
        };
        let before = seal::name_of(&value);
        let opened = sealer.open(key, value);
        let opened = opened.map_err(|why| Error::Unavailable(format!("{key}: {why}")))?;
        match before {
            Some(name) => *self.sealed.entry(name).or_default() += 1,
            None => self.plain += 1,
        }
        Ok(Some(sealer.seal(key, &opened).into_owned()))
    }

    /// Some of what was found had been written without a key.
    pub(super) fn found_plain(&self) -> bool {
        self.plain > 0
    }

    /// For whoever turned encryption on, or changes keys: what was done, and that nothing is left to do.
    pub(super) fn tell(&self, sealer: &Sealer) {
        if self.plain > 0 || !self.sealed.is_empty() {
            let (plain, others) = (self.plain, &self.sealed);
            tracing::info!(
                plain,
                ?others,
                "Sealed stored states anew that had been in plain text or sealed with other keys"
            );
        }
        if sealer.has_others() {
            tracing::info!("No stored state needs another encryption key than the first");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_sealed_with_the_first_key_is_due_and_nothing_else() {
        let secret = Key::new("secrets", "default", "a");
        let material = Key::new(crate::pki::MATERIAL, "", "ca");
        let map = Key::new("configmaps", "default", "a");
        let (old, new) = (Sealer::new([[1; 32]]), Sealer::new([[2; 32], [1; 32]]));
        let plain = b"{\"data\":\"hush\"}";
        let mut tally = Tally::default();
        for key in [&secret, &material] {
            for before in [plain.to_vec(), old.seal(key, plain).into_owned()] {
                let after = tally.anew(&new, key, Some(before)).expect("opened");
                let after = after.expect("it was due");
                assert_eq!(new.open(key, after.clone()).as_deref(), Ok(&plain[..]));
                let again = tally.anew(&new, key, Some(after)).expect("fine");
                assert_eq!(again, None);
            }
        }
        assert_eq!((tally.plain, tally.sealed.values().sum::<u64>()), (2, 2));
        assert!(tally.found_plain());
        let not = |sealer: &Sealer, key: &Key, value: Option<Vec<u8>>| {
            let anew = Tally::default().anew(sealer, key, value);
            assert_eq!(anew.expect("fine"), None, "{key}");
        };
        not(&new, &map, Some(plain.to_vec()));
        not(&new, &secret, None);
        not(&Sealer::default(), &secret, Some(plain.to_vec()));
        let strange = Sealer::new([[3; 32]]).seal(&secret, plain).into_owned();
        let error = tally
            .anew(&new, &secret, Some(strange))
            .expect_err("sealed");
        assert!(error.to_string().contains("secrets/default/a"), "{error}");
    }
}
