// What an agent does with axios and with Node's own fetch: headers, base URL, absolute form through `proxy`.
// Arguments: the sidecar's URL, then a mode. Writes one JSON object.

import axios from "axios";

const [url, mode, ...rest] = process.argv.slice(2);
const api = axios.create({ validateStatus: () => true, timeout: 20_000, proxy: false });

const modes = {
  async headers(provider, tenant) {
    const headers = { "X-Nexus-Provider": provider, "X-Nexus-Tenant": tenant };
    const first = await api.get(`${url}/first`, { headers, params: { q: "a b" } });
    const second = await api.post(`${url}/second`, { a: 1 }, { headers });
    return { statuses: [first.status, second.status] };
  },

  async base_url(provider, tenant) {
    const { status } = await api.get("/by-base-url", { baseURL: `${url}/via/${provider}@${tenant}` });
    return { statuses: [status] };
  },

  // The absolute form, which axios sends to a proxy.
  async proxy(target) {
    const { protocol, hostname, port } = new URL(url);
    const answer = await api.get(target, { proxy: { protocol, host: hostname, port: Number(port) } });
    return { statuses: [answer.status], error: answer.headers["x-nexus-error"] ?? null };
  },

  // Node's fetch sends Sec-Fetch-Mode, which must not be taken for a browser.
  async fetch(provider) {
    const { status } = await fetch(`${url}/via/${provider}/by-fetch`);
    return { statuses: [status] };
  },

  async failure(provider) {
    const answer = await api.get(`${url}/via/${provider}/`);
    return { statuses: [answer.status], error: answer.headers["x-nexus-error"], problem: answer.data };
  },
};

process.stdout.write(JSON.stringify(await modes[mode](...rest)));
