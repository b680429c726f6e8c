"""What quantisation cost, as one page that needs nothing else: `page.write_report`."""
