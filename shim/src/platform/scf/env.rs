//! Environment variables of an SCF custom image: the documented eight. Credentials come with each
//! request's headers instead.

use crate::FunctionConfig;

pub(super) fn variables(config: &FunctionConfig) -> Vec<(String, String)> {
    [
        ("TENCENTCLOUD_RUNENV", "SCF"),
        ("USER_CODE_ROOT", "/var/user/"),
        ("USER", "qcloud"),
        ("SCF_FUNCTIONNAME", &config.name),
        ("SCF_FUNCTIONVERSION", &config.version),
        ("TENCENTCLOUD_REGION", &config.region),
        ("TENCENTCLOUD_APPID", &config.app_id),
        ("TENCENTCLOUD_UIN", &config.account_id),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::scf;

    #[test]
    fn an_image_function_has_eight_variables() {
        let variables = variables(&FunctionConfig::new("resize", scf()));
        let found: Vec<(&str, &str)> = variables.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(
            found,
            [
                ("TENCENTCLOUD_RUNENV", "SCF"),
                ("USER_CODE_ROOT", "/var/user/"),
                ("USER", "qcloud"),
                ("SCF_FUNCTIONNAME", "resize"),
                ("SCF_FUNCTIONVERSION", "$LATEST"),
                ("TENCENTCLOUD_REGION", "ap-guangzhou"),
                ("TENCENTCLOUD_APPID", "1250000000"),
                ("TENCENTCLOUD_UIN", "100000000001"),
            ]
        );
    }
}
