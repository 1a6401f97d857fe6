import "@fontsource-variable/inter";
import "@mantine/core/styles.css";
import "@mantine/notifications/styles.css";
import "@/app/styles.css";
import { setNonce } from "get-nonce";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "@/app/App";
import { clientsOver } from "@/api/clients";
import { Session } from "@/api/session";
import { StepUp } from "@/api/stepUp";
import { openTransport, withStepUp, withToken } from "@/api/transport";
import { takeLink } from "@/features/auth/links";

// The value the file server allows style elements by; libraries that make some ask for it.
const nonce = document.querySelector<HTMLMetaElement>("meta[property=csp-nonce]")?.nonce ?? "";
setNonce(nonce);

// Before anything else looks at the address.
const link = takeLink(window.location, window.history);

const session = new Session(openTransport());
const stepUp = new StepUp();
const api = { session, stepUp, ...clientsOver(withStepUp(openTransport([withToken(session)]), stepUp)) };
void session.restore();

createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <App api={api} nonce={nonce} link={link} />
  </StrictMode>,
);
