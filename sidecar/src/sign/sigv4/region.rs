//! The region in a standard AWS host name.

/// Suffixes of AWS endpoints, longest first where one ends in another.
const SUFFIXES: [&str; 5] = [
    ".amazonaws.com.cn",
    ".amazonaws.com",
    ".amazonaws.eu",
    ".api.aws",
    ".on.aws",
];

/// What a region name starts with.
const PARTITIONS: [&str; 21] = [
    "af", "ap", "ca", "cn", "eu", "eu-isoe", "eusc-de", "il", "me", "mx", "sa", "us", "us-gov",
    "us-iso", "us-isob", "us-isoe", "us-isof", "nz", "tw", "kr", "th",
];

const DIRECTIONS: [&str; 9] = [
    "central",
    "east",
    "north",
    "northeast",
    "northwest",
    "south",
    "southeast",
    "southwest",
    "west",
];

/// The region of a host such as `s3.eu-west-1.amazonaws.com`, `bucket.s3.dualstack.eu-west-1.amazonaws.com`,
/// `id.execute-api.eu-west-1.amazonaws.com`, `s3-fips.us-gov-west-1.amazonaws.com`,
/// `domain.eu-west-1.es.amazonaws.com`, `bucket.vpce-1.s3.eu-west-1.vpce.amazonaws.com`; `None` for other and
/// for global hosts.
pub(super) fn of_host(host: &str) -> Option<&str> {
    let name = host.rsplit_once(':').map_or(host, |(name, _port)| name);
    let endpoint = SUFFIXES
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))?;
    let mut labels = endpoint.rsplit('.').filter(|label| *label != "vpce");
    let last = labels.next()?;
    if last == "us-gov" {
        return Some("us-gov-west-1");
    }
    if let Some(region) = of_label(last) {
        return Some(region);
    }
    // Bucket names are free to look like regions, and stand right before these.
    if last == "s3" || last.starts_with("s3-") {
        return None;
    }
    labels.next().filter(|label| is_region(label))
}

fn of_label(label: &str) -> Option<&str> {
    if is_region(label) {
        return Some(label);
    }
    let old_style = label.strip_prefix("s3-")?;
    let old_style = old_style.strip_prefix("fips-").unwrap_or(old_style);
    is_region(old_style).then_some(old_style)
}

fn is_region(label: &str) -> bool {
    let Some((rest, number)) = label.rsplit_once('-') else {
        return false;
    };
    let Some((partition, direction)) = rest.rsplit_once('-') else {
        return false;
    };
    number.len() == 1
        && number.bytes().all(|digit| digit.is_ascii_digit())
        && DIRECTIONS.contains(&direction)
        && PARTITIONS.contains(&partition)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_host_names_carry_their_region() {
        for (host, region) in [
            ("s3.eu-west-1.amazonaws.com", "eu-west-1"),
            ("s3.eu-west-1.amazonaws.com:8443", "eu-west-1"),
            ("bucket.s3.eu-west-1.amazonaws.com", "eu-west-1"),
            (
                "my.dotted.bucket.s3.ap-southeast-2.amazonaws.com",
                "ap-southeast-2",
            ),
            ("bucket.s3.dualstack.us-west-2.amazonaws.com", "us-west-2"),
            ("s3-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
            ("s3-fips.dualstack.us-east-2.amazonaws.com", "us-east-2"),
            ("s3-eu-west-1.amazonaws.com", "eu-west-1"),
            ("bucket.s3-ap-northeast-1.amazonaws.com", "ap-northeast-1"),
            (
                "abc123.execute-api.eu-central-1.amazonaws.com",
                "eu-central-1",
            ),
            ("dynamodb.cn-north-1.amazonaws.com.cn", "cn-north-1"),
            ("search-x-abc.eu-west-1.es.amazonaws.com", "eu-west-1"),
            ("eu-west-1.queue.amazonaws.com", "eu-west-1"),
            ("123456789012.dkr.ecr.us-east-2.amazonaws.com", "us-east-2"),
            (
                "bucket.vpce-1a.s3.us-east-2.vpce.amazonaws.com",
                "us-east-2",
            ),
            ("ec2.eu-west-3.api.aws", "eu-west-3"),
            ("abc.lambda-url.eu-north-1.on.aws", "eu-north-1"),
            ("iam.us-gov.amazonaws.com", "us-gov-west-1"),
            ("sts.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1"),
            ("lambda.us-iso-east-1.amazonaws.com", "us-iso-east-1"),
        ] {
            assert_eq!(of_host(host), Some(region), "{host}");
        }
    }

    #[test]
    fn global_and_foreign_hosts_carry_none() {
        for host in [
            "s3.amazonaws.com",
            "bucket.s3.amazonaws.com",
            "eu-west-1.s3.amazonaws.com",
            "bucket.s3-accelerate.amazonaws.com",
            "eu-west-1.s3-external-1.amazonaws.com",
            "iam.amazonaws.com",
            "sts.amazonaws.com",
            "s3.eu-west-1.example.com",
            "minio.internal:9000",
            "[::1]:9000",
            "amazonaws.com",
        ] {
            assert_eq!(of_host(host), None, "{host}");
        }
    }
}
