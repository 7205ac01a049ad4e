//! Environment variables of an FC custom container.
//!
//! Official list; 2.0 has the service and the qualifier besides. Role credentials are set only for a
//! function that has a role. `FC_SERVER_PORT` is not in the official list (community code reads it
//! with 9000 as its default) and is not set.

use super::Api;
use crate::platform::types::exposed;
use crate::{Credentials, FunctionConfig};

pub(super) fn variables(
    api: Api,
    config: &FunctionConfig,
    instance_id: &str,
    role: Option<&Credentials>,
) -> Vec<(String, String)> {
    let mut variables = vec![
        ("FC_FUNC_CODE_PATH", "/code".to_owned()),
        ("FC_ACCOUNT_ID", config.account_id.clone()),
        ("FC_FUNCTION_NAME", config.name.clone()),
        ("FC_FUNCTION_HANDLER", config.handler.clone()),
        ("FC_FUNCTION_MEMORY_SIZE", config.memory_mib.to_string()),
        ("FC_REGION", config.region.clone()),
        ("FC_CUSTOM_LISTEN_PORT", config.port().to_string()),
        ("FC_INSTANCE_ID", instance_id.to_owned()),
    ];
    if api == Api::V2 {
        variables.push(("FC_SERVICE_NAME", config.namespace.clone()));
        variables.push(("FC_QUALIFIER", config.version.clone()));
    }
    if let Some(role) = role {
        variables.push(("ALIBABA_CLOUD_ACCESS_KEY_ID", exposed(&role.access_key_id)));
        variables.push(("ALIBABA_CLOUD_ACCESS_KEY_SECRET", exposed(&role.access_key_secret)));
        variables.push(("ALIBABA_CLOUD_SECURITY_TOKEN", exposed(&role.security_token)));
    }
    variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::fc;
    use crate::platform::testing::role;

    fn names(variables: &[(String, String)]) -> Vec<&str> {
        variables.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn a_function_without_a_role_has_eight_variables() {
        let mut config = FunctionConfig::new("resize", fc());
        config.port = Some(8080);
        config.memory_mib = 1024;
        config.account_id = "1234567890123456".to_owned();
        let variables = variables(Api::V3, &config, "c-1-2-3", config.credentials.as_ref());
        let expected = [
            ("FC_FUNC_CODE_PATH", "/code"),
            ("FC_ACCOUNT_ID", "1234567890123456"),
            ("FC_FUNCTION_NAME", "resize"),
            ("FC_FUNCTION_HANDLER", "index.handler"),
            ("FC_FUNCTION_MEMORY_SIZE", "1024"),
            ("FC_REGION", "cn-hangzhou"),
            ("FC_CUSTOM_LISTEN_PORT", "8080"),
            ("FC_INSTANCE_ID", "c-1-2-3"),
        ];
        let found: Vec<(&str, &str)> = variables.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_role_adds_its_credentials() {
        let mut config = FunctionConfig::new("resize", fc());
        config.credentials = Some(role());
        let variables = variables(Api::V3, &config, "c-1-2-3", config.credentials.as_ref());
        assert_eq!(
            variables[8..],
            [
                ("ALIBABA_CLOUD_ACCESS_KEY_ID".to_owned(), "the-id".to_owned()),
                ("ALIBABA_CLOUD_ACCESS_KEY_SECRET".to_owned(), "the-key".to_owned()),
                ("ALIBABA_CLOUD_SECURITY_TOKEN".to_owned(), "the-token".to_owned()),
            ]
        );
    }

    #[test]
    fn api_two_has_service_and_qualifier() {
        let config = FunctionConfig::new("resize", crate::platform::fc2());
        let two = variables(Api::V2, &config, "c-1-2-3", config.credentials.as_ref());
        assert_eq!(names(&two)[8..], ["FC_SERVICE_NAME", "FC_QUALIFIER"]);
        assert_eq!(two[9].1, "LATEST");
        assert!(
            !names(&variables(Api::V3, &config, "c", config.credentials.as_ref()))
                .contains(&"FC_SERVICE_NAME")
        );
    }
}
