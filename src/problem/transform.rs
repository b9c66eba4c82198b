//! The logit transform, which precedes every operation: a scale, and a soft cap.

use crate::Error;

/// The logit transform: `y = softcap * tanh(scale * x / softcap)`, or `y = scale * x` without a
/// cap.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Transform {
    pub(crate) scale: f64,
    /// The cap, which is positive; `None` for no cap.
    pub(crate) softcap: Option<f64>,
}

impl Default for Transform {
    fn default() -> Self {
        Self { scale: 1.0, softcap: None }
    }
}

impl Transform {
    /// Returns the transform whose result is divided by `temperature`.
    pub(crate) fn at_temperature(self, temperature: f32) -> Result<Self, Error> {
        check_magnitude("temperature", temperature, false)?;
        self.scaled(1.0 / f64::from(temperature))
    }

    /// Returns the transform whose result is multiplied by `scale`, and then capped by `softcap`.
    pub(crate) fn then(self, scale: f32, softcap: Option<f32>) -> Result<Self, Error> {
        let scaled = self.scaled(f64::from(scale))?;
        match softcap {
            Some(value) if self.softcap.is_some() => Err(Error::OptionValue {
                option: "softcap",
                value,
                range: "set once, not of the logits and of the loss",
            }),
            Some(cap) => Ok(Self { softcap: Some(f64::from(cap)), ..scaled }),
            None => Ok(scaled),
        }
    }

    fn scaled(self, factor: f64) -> Result<Self, Error> {
        // tanh is odd, so the sign of `factor` goes to the scale alone.
        let scaled = Self {
            scale: self.scale * factor,
            softcap: self.softcap.map(|cap| cap * factor.abs()),
        };
        // In this range products and quotients of f32 stay finite.
        let fits = |value: f64| (1e-18..=1e18).contains(&value.abs());
        if fits(scaled.scale) && scaled.softcap.is_none_or(fits) {
            return Ok(scaled);
        }
        let value = scaled.scale as f32;
        Err(Error::OptionValue {
            option: "scale of the logits altogether",
            value,
            range: "between 1e-18 and 1e18",
        })
    }

    /// Returns the transform, or an error that says `range` where it has a cap: for operations that
    /// are defined for a scale alone.
    pub(crate) fn without_cap(self, range: &'static str) -> Result<Self, Error> {
        match self.softcap {
            Some(cap) => Err(Error::OptionValue { option: "softcap", value: cap as f32, range }),
            None => Ok(self),
        }
    }

    pub(crate) fn is_identity(&self) -> bool {
        *self == Self::default()
    }
}

/// Checks that `value` is a factor with which products and quotients of f32 stay finite.
pub(crate) fn check_magnitude(
    option: &'static str,
    value: f32,
    may_be_negative: bool,
) -> Result<(), Error> {
    let magnitude = if may_be_negative { value.abs() } else { value };
    if (1e-9..=1e9).contains(&magnitude) {
        return Ok(());
    }
    let range = if may_be_negative {
        "between 1e-9 and 1e9, or the negative of that"
    } else {
        "between 1e-9 and 1e9"
    };
    Err(Error::OptionValue { option, value, range })
}
