//! Kubernetes quantities (`100m`, `1Gi`, `1e3`) of typed objects as exact integers; [`schema::quantity`] reads them.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The value in thousandths, rounded up; `None` when the text is no quantity or too large.
pub fn millis(quantity: &Quantity) -> Option<i128> {
    schema::quantity::milli(&quantity.0).ok()
}

/// The value in whole units, rounded up.
pub fn units(quantity: &Quantity) -> Option<i64> {
    i64::try_from(schema::quantity::units(&quantity.0).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_what_is_none() {
        let table = [
            ("100m", Some(100), Some(1)),
            ("1.5", Some(1500), Some(2)),
            ("1n", Some(1), Some(1)),
            ("-5", Some(-5000), Some(-5)),
            ("2E", Some(2_000_000_000_000_000_000_000), Some(2_000_000_000_000_000_000)),
            ("20E", Some(20_000_000_000_000_000_000_000), None),
            ("1Zi", None, None),
            ("", None, None),
        ];
        for (text, thousandths, whole) in table {
            let quantity = Quantity(text.into());
            assert_eq!((millis(&quantity), units(&quantity)), (thousandths, whole), "{text}");
        }
    }
}
