// Shows the documents the server lists; on a service's own port its own document first.
(async () => {
  const documents = await (await fetch("/docs/documents.json")).json();
  const own = documents.find(({ port }) => String(port) === window.location.port);
  window.SwaggerUIBundle({
    dom_id: "#docs",
    urls: documents.map(({ name, url }) => ({ name, url })),
    "urls.primaryName": (own ?? documents[0])?.name,
    presets: [window.SwaggerUIBundle.presets.apis, window.SwaggerUIStandalonePreset],
    layout: "StandaloneLayout",
    deepLinking: true,
    displayRequestDuration: true,
    // A token typed here is not kept.
    persistAuthorization: false,
    // No document leaves this machine to be checked elsewhere.
    validatorUrl: null,
  });
})();
