// An agent that calls APIs without holding a credential.
// Run it beside a sidecar:  node agent.mjs [PROVIDER] [TENANT]

import axios from "axios";

const sidecar = process.env.NEXUS_SIDECAR_URL ?? "http://localhost:8080";
const [provider = "bearer", tenant] = process.argv.slice(2);

// Two headers: the way to go where the HTTP client is yours.
const byHeaders = axios.create({
  baseURL: sidecar,
  headers: { "X-Nexus-Provider": provider, ...(tenant && { "X-Nexus-Tenant": tenant }) },
});

// Only a base URL: the way to go where an SDK takes nothing else.
const byBaseUrl = axios.create({
  baseURL: `${sidecar}/via/${tenant ? `${provider}@${tenant}` : provider}`,
});

try {
  for (const [name, api] of Object.entries({ byHeaders, byBaseUrl })) {
    const { status, data } = await api.post("/hello", { from: name });
    console.log(`${name}: ${status}`);
    console.log(typeof data === "string" ? data : JSON.stringify(data));
  }
} catch (error) {
  // Tells a failure of the sidecar from an answer of the API.
  const code = error.response?.headers["x-nexus-error"];
  console.error(code ? `${code}: ${error.response.data.detail}` : error.message);
  process.exitCode = 1;
}
